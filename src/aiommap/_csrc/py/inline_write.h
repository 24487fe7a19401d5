/* inline_write.h: stores of the loop thread (I1). */
#ifndef AIOMMAP_PY_INLINE_WRITE_H
#define AIOMMAP_PY_INLINE_WRITE_H

#include "mapping.h"

PyObject *mapping_write_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_write_now(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_stage(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_set_inline_limits(Mapping *self, PyObject *args);
PyObject *mapping_set_queued(Mapping *self, PyObject *args);

#endif
