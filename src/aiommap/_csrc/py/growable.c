/* growable.c: leases through which a store beyond the end makes the file longer.
 *
 * They have a region of their own, beside the one that verbs and other leases use. That one can be
 * fenced when the file shrinks, so that its leases read zeros and do not make the file longer again.
 */
#include "growable.h"

#include "lease.h"
#include "pin.h"

/* Map the reserved range once more, as a growable region, unless there is one; false with an
 * exception. */
static bool map_growable(Mapping *self)
{
    while (mapping_check(self)) {
        size_t length = self->region ? self->region->length : 0;
        if (self->growable && self->growable->length >= length)
            return true;
        struct region_options options = mapping_options(self);
        struct region *region = NULL, *old;
        struct pin pin;
        int error;
        options.growth = &self->growth;
        WITHOUT_GIL(pin, self, error = region_map(&region, pin.fd, length, &options););
        if (error) {
            os_error(error);
            return false;
        }
        /* Another thread may have been first, or closed the mapping: then nobody needs this
         * region. */
        bool wanted = !self->closed && (!self->growable || self->growable->length < length);
        old = wanted ? self->growable : region;
        if (wanted)
            self->growable = region;
        region_release(old); /* its leases keep it mapped */
    }
    return false;
}

static bool can_grow(const Mapping *self, int64_t offset, int64_t length)
{
    int64_t limit = self->region ? (int64_t)self->region->length : 0;
    int64_t end = __atomic_load_n(&self->growth.end, __ATOMIC_ACQUIRE);
    if (!mapping_check(self))
        return false;
    if (range_is_valid(offset, length, limit) && end == page_up(end) && /* growth.1 */
        self->writable && !self->private_copy)
        return true;
    PyErr_Format(PyExc_ValueError, "%lld bytes at %lld: cannot grow from %lld", (long long)length,
                 (long long)offset, (long long)end);
    return false;
}

PyObject *mapping_lease_growable(Mapping *self, PyObject *args)
{
    long long offset, length;
    PyObject *place = Py_None;
    if (!PyArg_ParseTuple(args, "LL|O:lease_growable", &offset, &length, &place))
        return NULL;
    Lease *lease = lease_make(self, place);
    /* Take the region last: nothing lets the GIL go between the last check and the binding
     * (mapping.6). */
    if (lease && (!can_grow(self, offset, length) || (length && !map_growable(self)) ||
                  !can_grow(self, offset, length) ||
                  !lease_bind(lease, self->growable, offset, length, true)))
        Py_CLEAR(lease);
    return (PyObject *)lease;
}

PyObject *mapping_stop_growth(Mapping *self, PyObject *Py_UNUSED(unused))
{
    struct pin pin;
    WITHOUT_GIL(pin, self, growth_stop(&self->growth););
    Py_RETURN_NONE;
}
