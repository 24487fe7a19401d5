/* blocks.h: the type Blocks: the words and checksums of a cached object. */
#ifndef AIOMMAP_PY_BLOCKS_H
#define AIOMMAP_PY_BLOCKS_H

#include "api.h"

extern PyType_Spec blocks_spec;
extern PyMethodDef block_functions[];

#endif
