/* paging.h: which pages are in memory, and verbs that change that. */
#ifndef AIOMMAP_PY_PAGING_H
#define AIOMMAP_PY_PAGING_H

#include "mapping.h"

PyObject *mapping_populate(Mapping *self, PyObject *args);
PyObject *mapping_advise(Mapping *self, PyObject *args);
PyObject *mapping_residency(Mapping *self, PyObject *args);
PyObject *mapping_cachestat(Mapping *self, PyObject *args);

#endif
