/* mapping_type.h: the type Mapping. */
#ifndef AIOMMAP_PY_MAPPING_TYPE_H
#define AIOMMAP_PY_MAPPING_TYPE_H

#include "api.h"

extern PyType_Spec mapping_spec;

#endif
