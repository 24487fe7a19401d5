/* inline.h: the verbs of the loop thread, which never wait; and what bounds them. */
#ifndef AIOMMAP_PY_INLINE_H
#define AIOMMAP_PY_INLINE_H

#include "mapping.h"

PyObject *mapping_read_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_read_into_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_read_nowait(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_write_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_write_now(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_stage(Mapping *self, PyObject *const *args, Py_ssize_t count);

PyObject *mapping_set_inline_limits(Mapping *self, PyObject *args);
PyObject *mapping_set_queued(Mapping *self, PyObject *args);
PyObject *mapping_set_locked(Mapping *self, PyObject *ranges);

#endif
