/* append.h: stores behind the end of a file, which make it longer. */
#ifndef AIOMMAP_PY_APPEND_H
#define AIOMMAP_PY_APPEND_H

#include "mapping.h"

PyObject *mapping_append(Mapping *self, PyObject *list);
PyObject *mapping_count_appended(Mapping *self, PyObject *args);
PyObject *append_zeros_to_file(PyObject *module, PyObject *args);

#endif
