/* commit.h: the group commit: stores that are made durable in one job of the pool. */
#ifndef AIOMMAP_PY_COMMIT_H
#define AIOMMAP_PY_COMMIT_H

#include "mapping.h"

PyObject *mapping_begin_commit(Mapping *self, PyObject *args);

#endif
