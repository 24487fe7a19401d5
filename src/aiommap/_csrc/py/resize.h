/* resize.h: the size of a mapping, and changes of it, of the fence and of the region. */
#ifndef AIOMMAP_PY_RESIZE_H
#define AIOMMAP_PY_RESIZE_H

#include "mapping.h"

/* Take over growth that the signal handler brought about, and return the size. */
int64_t mapping_size(Mapping *self);
/* Wait, without the GIL, until the change that is under way has ended, if one is. */
void mapping_wait_for_change(Mapping *self);
/* Count the closing of the mapping as a change (mapping.1). */
void mapping_count_change(Mapping *self);

/* Let verbs address the file up to `end`. False, with nothing done, if that needs a change: a part
 * is fenced, or beyond the capacity. */
bool mapping_reach(Mapping *self, int64_t end);

PyObject *mapping_rebase(Mapping *self, PyObject *args);
PyObject *mapping_truncate(Mapping *self, PyObject *args);
PyObject *mapping_extend(Mapping *self, PyObject *args);
PyObject *mapping_adopt(Mapping *self, PyObject *args);
PyObject *mapping_take_growth(Mapping *self, PyObject *unused);

#endif
