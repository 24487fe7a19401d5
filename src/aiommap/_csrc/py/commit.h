/* commit.h: the group commit: stores that are made durable in the same native call. */
#ifndef AIOMMAP_PY_COMMIT_H
#define AIOMMAP_PY_COMMIT_H

#include "mapping.h"

PyObject *mapping_commit(Mapping *self, PyObject *list);

#endif
