/* search.h: finding bytes in bytes, without the GIL where that takes long. */
#ifndef AIOMMAP_PY_SEARCH_H
#define AIOMMAP_PY_SEARCH_H

#include "api.h"

PyObject *find_bytes(PyObject *module, PyObject *args);

#endif
