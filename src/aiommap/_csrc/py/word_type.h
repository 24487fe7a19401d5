/* word_type.h: the types Word and WordArray. */
#ifndef AIOMMAP_PY_WORD_TYPE_H
#define AIOMMAP_PY_WORD_TYPE_H

#include "api.h"

extern PyType_Spec word_spec, word_array_spec;

#endif
