/* growth.c: leases on a growable region, and what the signal handler did to the file through them.
 *
 * The region is one of its own, beside the one that verbs and other leases use: that one can be
 * fenced when the file shrinks, so that its leases read zeros and do not make it longer again.
 */
#include "mapping.h"

/* Put the file back behind pages that shrinking had fenced, up to where it reaches again. */
static bool lift_fence(Mapping *self, int64_t end)
{
    size_t stop = pages_for(end) * page_size();
    if (self->fence >= (int64_t)stop)
        return true;
    if (self->region && region_unfence(self->region, self->fd, (size_t)self->fence, stop))
        return false;
    for (Lease *lease = self->leases; lease; lease = lease->next)
        if (lease->region && lease->region != self->region && !lease->region->growth &&
            region_unfence(lease->region, self->fd, (size_t)self->fence, stop))
            return false;
    self->fence = (int64_t)stop;
    return true;
}

int64_t mapping_size(Mapping *self)
{
    int64_t grown = __atomic_load_n(&self->growth.grown, __ATOMIC_ACQUIRE);
    if (grown > self->size && !self->closed && self->moving == INT64_MAX && /* mapping.4 */
        lift_fence(self, grown)) {
        mapping_set_size(self, grown);
        self->growth_seen = true; /* no change that verbs must know of: what they checked is true */
    }
    return self->size;
}

PyObject *mapping_get_reserved_end(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(self->growth.reserved);
}

PyObject *mapping_get_file_end(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(__atomic_load_n(&self->growth.end, __ATOMIC_ACQUIRE));
}

PyObject *mapping_get_grown(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(__atomic_load_n(&self->growth.grown, __ATOMIC_ACQUIRE));
}

PyObject *mapping_get_growing(Mapping *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(__atomic_load_n(&self->growth.busy, __ATOMIC_ACQUIRE) != 0);
}

/* Map as much as is reserved once more, unless that was done; false with an exception. */
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
        /* Another thread may have been first, or the mapping closed: then ours is of no use. */
        bool wanted = !self->closed && (!self->growable || self->growable->length < length);
        old = wanted ? self->growable : region;
        if (wanted)
            self->growable = region;
        region_release(old); /* leases on it keep it */
    }
    return false;
}

static bool can_grow(const Mapping *self, int64_t offset, int64_t length)
{
    int64_t limit = self->region ? (int64_t)self->region->length : 0;
    int64_t end = __atomic_load_n(&self->growth.end, __ATOMIC_ACQUIRE);
    if (!mapping_check(self))
        return false;
    if (range_is_valid(offset, length, limit) && end % (int64_t)page_size() == 0 && /* growth.1 */
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
    /* The region last: nothing lets the GIL go between finding it there and binding it (mapping.6). */
    if (lease && (!can_grow(self, offset, length) || (length && !map_growable(self)) ||
                  !can_grow(self, offset, length) ||
                  !lease_bind(lease, self->growable, offset, length, true)))
        Py_CLEAR(lease);
    return (PyObject *)lease;
}

PyObject *mapping_take_growth(Mapping *self, PyObject *Py_UNUSED(unused))
{
    mapping_size(self);
    bool seen = self->growth_seen;
    self->growth_seen = false;
    return PyBool_FromLong(seen);
}

PyObject *mapping_stop_growth(Mapping *self, PyObject *Py_UNUSED(unused))
{
    struct pin pin;
    WITHOUT_GIL(pin, self, growth_stop(&self->growth););
    Py_RETURN_NONE;
}
