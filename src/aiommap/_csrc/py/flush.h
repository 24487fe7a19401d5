/* flush.h: what a flush takes out of the accounting, and what it puts back. */
#ifndef AIOMMAP_PY_FLUSH_H
#define AIOMMAP_PY_FLUSH_H

#include "mapping.h"

PyObject *mapping_begin_writeback(Mapping *self, PyObject *args);
PyObject *mapping_end_writeback(Mapping *self, PyObject *failed);
PyObject *mapping_begin_flush(Mapping *self, PyObject *args);
PyObject *mapping_awaits_flush(Mapping *self, PyObject *receipt);
PyObject *mapping_dirty_runs(Mapping *self, PyObject *unused);
PyObject *mapping_dirty_bytes(Mapping *self, PyObject *unused);
PyObject *mapping_would_dirty(Mapping *self, PyObject *args);

#endif
