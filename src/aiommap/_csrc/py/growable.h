/* growable.h: leases through which a store beyond the end makes the file longer. */
#ifndef AIOMMAP_PY_GROWABLE_H
#define AIOMMAP_PY_GROWABLE_H

#include "mapping.h"

PyObject *mapping_lease_growable(Mapping *self, PyObject *args);
PyObject *mapping_stop_growth(Mapping *self, PyObject *unused);

#endif
