/* lease.h: Lease, an exported buffer over part of a mapping. */
#ifndef AIOMMAP_PY_LEASE_H
#define AIOMMAP_PY_LEASE_H

#include "mapping.h"

extern PyType_Spec lease_spec;

/* Make a lease first, then check the range, and then bind the lease to it: nothing may run between
 * the last two (mapping.2). lease_bind takes a reference of the region; false with an exception. */
Lease *lease_make(Mapping *self, PyObject *place);
bool lease_bind(Lease *lease, struct region *region, int64_t offset, int64_t length,
                bool writable);
/* Mark the pages of writable leases as dirty: somebody may store to them at any moment. False when
 * out of memory. */
bool mapping_mark_leased(Mapping *self);

PyObject *mapping_lease(Mapping *self, PyObject *args);
/* [(offset, end, place), ...] of at most this number of live leases, oldest first. */
PyObject *mapping_oldest_leases(Mapping *self, PyObject *limit);

#endif
