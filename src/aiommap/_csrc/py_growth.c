/* py_growth.c: leases on a growable region, and what the signal handler did to the file through them.
 *
 * The region is one of its own, beside the one that verbs and other leases use: that one can be
 * fenced when the file shrinks, so that its leases read zeros and do not make it longer again.
 */
#include "py_mapping.h"

/* Put the file back behind pages that shrinking had fenced, up to where it reaches again. */
static bool lift_fence(Mapping *self, int64_t end)
{
    size_t stop = pages_for(end) * page_size();
    if (self->fence >= end)
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
    if (grown > self->size && !self->closed && lift_fence(self, grown)) {
        self->size = grown;
        self->growth_seen = true;
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

/* Map as much as is reserved once more, unless that was done. NULL with an exception. */
static struct region *growable_region(Mapping *self)
{
    size_t length = self->region ? self->region->length : 0;
    if (self->growable && self->growable->length >= length)
        return self->growable;
    struct region_options options = mapping_options(self);
    struct region *region = NULL;
    struct hold hold;
    int error;
    options.growth = &self->growth;
    WITHOUT_GIL(hold, self, error = region_map(&region, hold.fd, length, &options););
    if (error) {
        os_error(error);
        return NULL;
    }
    region_release(self->growable); /* leases on it keep it */
    self->growable = region;
    return region;
}

PyObject *mapping_lease_growable(Mapping *self, PyObject *args)
{
    long long offset, length;
    PyObject *place = Py_None;
    if (!PyArg_ParseTuple(args, "LL|O:lease_growable", &offset, &length, &place) ||
        !mapping_check(self))
        return NULL;
    int64_t limit = self->region ? (int64_t)self->region->length : 0;
    int64_t end = __atomic_load_n(&self->growth.end, __ATOMIC_ACQUIRE);
    if (!range_is_valid(offset, length, limit) || end % (int64_t)page_size() || /* X1 */
        !self->writable || self->private_copy)
        return PyErr_Format(PyExc_ValueError, "cannot grow from %lld to %lld", (long long)end,
                            offset + length);
    struct region *region = length ? growable_region(self) : NULL;
    if (length && !region)
        return NULL;
    return (PyObject *)lease_make(self, region, offset, length, true, place);
}

PyObject *mapping_truncate(Mapping *self, PyObject *args)
{
    long long length;
    int error;
    if (!PyArg_ParseTuple(args, "L:truncate", &length) || !mapping_check(self))
        return NULL;
    bool whole_pages = self->growable_leases > 0 && self->growth.fd >= 0;
    struct hold hold;
    WITHOUT_GIL(hold, self,
                error = growth_truncate(&self->growth, hold.fd, length, whole_pages););
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

PyObject *mapping_extend(Mapping *self, PyObject *args)
{
    long long end;
    int error;
    if (!PyArg_ParseTuple(args, "L:extend", &end) || !mapping_check(self))
        return NULL;
    struct hold hold;
    WITHOUT_GIL(hold, self, error = growth_extend(&self->growth, hold.fd, end););
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

PyObject *mapping_follow(Mapping *self, PyObject *args)
{
    long long length;
    if (!PyArg_ParseTuple(args, "L:follow", &length) || !mapping_check(self))
        return NULL;
    struct hold hold;
    WITHOUT_GIL(hold, self, growth_follow(&self->growth, length););
    Py_RETURN_NONE;
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
    struct hold hold;
    WITHOUT_GIL(hold, self, growth_stop(&self->growth););
    Py_RETURN_NONE;
}
