/* blocking.h: reads and other calls on the file that worker threads make; they may wait, without
 * the GIL (I2). */
#ifndef AIOMMAP_PY_BLOCKING_H
#define AIOMMAP_PY_BLOCKING_H

#include "mapping.h"

PyObject *mapping_read(Mapping *self, PyObject *args);
PyObject *mapping_read_into(Mapping *self, PyObject *args);
PyObject *mapping_sync(Mapping *self, PyObject *args);
PyObject *mapping_stat(Mapping *self, PyObject *unused);
PyObject *mapping_sync_range(Mapping *self, PyObject *args);
PyObject *mapping_start_writeback(Mapping *self, PyObject *args);
PyObject *mapping_read_ahead(Mapping *self, PyObject *args);
PyObject *mapping_punch_hole(Mapping *self, PyObject *args);
PyObject *mapping_lock(Mapping *self, PyObject *args);
PyObject *mapping_lock_later(Mapping *self, PyObject *args);
PyObject *mapping_unlock(Mapping *self, PyObject *args);

#endif
