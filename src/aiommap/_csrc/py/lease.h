/* lease.h: Lease, an exported buffer over part of a mapping. */
#ifndef AIOMMAP_PY_LEASE_H
#define AIOMMAP_PY_LEASE_H

#include "mapping.h"

extern PyType_Spec lease_spec;

/* A lease is made first, and then bound to a range that is checked when nothing can happen any more
 * (mapping.2). lease_bind takes a reference of the region; false with an exception. */
Lease *lease_make(Mapping *self, PyObject *place);
bool lease_bind(Lease *lease, struct region *region, int64_t offset, int64_t length,
                bool writable);
/* A writable lease may be stored through at any moment, so its pages are dirty while it lives. False
 * when out of memory. */
bool mapping_mark_leased(Mapping *self);

PyObject *mapping_lease(Mapping *self, PyObject *args);
/* [(offset, end, place), ...] of at most this number of live leases, oldest first. */
PyObject *mapping_oldest_leases(Mapping *self, PyObject *limit);

#endif
