/* py_resize.c: how much of the file is addressed, and address space for more of it. */
#include "py_mapping.h"

#include <errno.h>

PyObject *mapping_set_size(Mapping *self, PyObject *args)
{
    long long size;
    if (!PyArg_ParseTuple(args, "L:set_size", &size) || !mapping_check(self))
        return NULL;
    if (size < 0 || (uint64_t)size > (self->region ? self->region->length : 0))
        return PyErr_Format(PyExc_ValueError, "size %lld leaves the reserved range", size);
    size_t kept = pages_for(size);
    pages_remove(&self->dirty, kept, self->dirty.count);
    pages_remove(&self->ready, kept, self->ready.count);
    self->size = self->floor = size;
    Py_RETURN_NONE;
}

/* Move to a new, larger address range; leases keep the old one. */
PyObject *mapping_rebase(Mapping *self, PyObject *args)
{
    long long capacity;
    size_t page = page_size();
    if (!PyArg_ParseTuple(args, "L:rebase", &capacity) || !mapping_check(self))
        return NULL;
    if (capacity < self->size || capacity > PTRDIFF_MAX - (long long)page || self->private_copy)
        return PyErr_Format(PyExc_ValueError, "cannot rebase to %lld bytes", capacity);
    size_t pages = pages_for(capacity);
    if (!pages_reserve(&self->dirty, pages) || !pages_reserve(&self->ready, pages))
        return PyErr_NoMemory();
    struct region *region = NULL;
    struct region_options options = mapping_options(self);
    struct hold hold;
    int error;
    WITHOUT_GIL(hold, self, error = region_map(&region, hold.fd, pages * page, &options););
    if (error)
        return os_error(error);
    struct region *old = self->region, *quiet = self->quiet;
    self->region = region;
    self->quiet = NULL; /* shorter; made anew when needed */
    region_release(old);
    region_release(quiet);
    Py_RETURN_NONE;
}

/* Every region of the file that somebody can still touch: the current one and those that leases
 * kept when the mapping moved. Returns how many; the caller releases them. */
static size_t hold_regions(Mapping *self, struct region **regions)
{
    size_t count = 0;
    if (self->region)
        regions[count++] = self->region;
    for (Lease *lease = self->leases; lease; lease = lease->next) {
        bool known = !lease->region || lease->region->growth; /* that one grows again instead */
        for (size_t i = 0; i < count && !known; i++)
            known = regions[i] == lease->region;
        if (!known)
            regions[count++] = lease->region;
    }
    for (size_t i = 0; i < count; i++)
        regions[i]->holders++;
    return count;
}

/* Fence at `offset` if end is negative, else unfence [offset, end). */
static PyObject *move_fence(Mapping *self, long long offset, long long end)
{
    int error = 0;
    long long page = (long long)page_size();
    if (!mapping_check(self))
        return NULL;
    if (offset < 0 || offset % page || (end > 0 && end % page) || self->private_copy)
        return PyErr_Format(PyExc_ValueError, "cannot fence [%lld, %lld)", offset, end);
    struct region **regions = PyMem_Calloc((size_t)self->lease_count + 1, sizeof(struct region *));
    if (!regions)
        return PyErr_NoMemory();
    size_t count = hold_regions(self, regions);
    struct hold hold;
    WITHOUT_GIL(hold, self, for (size_t i = 0; i < count && !error; i++) error =
                                end < 0 ? region_fence(regions[i], (size_t)offset)
                                        : region_unfence(regions[i], hold.fd, (size_t)offset,
                                                         (size_t)end););
    for (size_t i = 0; i < count; i++)
        region_release(regions[i]);
    PyMem_Free(regions);
    if (error)
        return os_error(error);
    if (end < 0)
        self->fence = offset;
    else if (end > self->fence)
        self->fence = end;
    Py_RETURN_NONE;
}

PyObject *mapping_fence(Mapping *self, PyObject *args)
{
    long long offset;
    return PyArg_ParseTuple(args, "L:fence", &offset) ? move_fence(self, offset, -1) : NULL;
}

PyObject *mapping_unfence(Mapping *self, PyObject *args)
{
    long long offset, end;
    if (!PyArg_ParseTuple(args, "LL:unfence", &offset, &end))
        return NULL;
    return move_fence(self, offset, end < 0 ? 0 : end);
}
