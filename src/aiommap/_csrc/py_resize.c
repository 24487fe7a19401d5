/* py_resize.c: how much of the file is addressed, and address space for more of it. */
#include "py_mapping.h"

#include <errno.h>

PyObject *mapping_set_size(Mapping *self, PyObject *args)
{
    long long size;
    size_t page = page_size();
    if (!PyArg_ParseTuple(args, "L:set_size", &size) || !mapping_check(self))
        return NULL;
    if (size < 0 || (uint64_t)size > (self->region ? self->region->length : 0))
        return PyErr_Format(PyExc_ValueError, "size %lld leaves the reserved range", size);
    size_t kept = ((size_t)size + page - 1) / page;
    pages_remove(&self->dirty, kept, self->dirty.count);
    pages_remove(&self->ready, kept, self->ready.count);
    self->size = size;
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
    size_t pages = ((size_t)capacity + page - 1) / page;
    if (!pages_reserve(&self->dirty, pages) || !pages_reserve(&self->ready, pages))
        return PyErr_NoMemory();
    struct region *region = NULL;
    struct hold hold;
    int error;
    WITHOUT_GIL(hold, self, error = region_map(&region, hold.fd, pages * page, self->writable,
                                               false, self->huge););
    if (error)
        return os_error(error);
    struct region *old = self->region;
    self->region = region;
    region_release(old);
    Py_RETURN_NONE;
}

static PyObject *move_fence(Mapping *self, PyObject *args, bool up)
{
    long long offset;
    int error = 0;
    if (!PyArg_ParseTuple(args, "L", &offset) || !mapping_check(self))
        return NULL;
    if (offset < 0 || offset % (long long)page_size() || self->private_copy)
        return PyErr_Format(PyExc_ValueError, "cannot fence at %lld", offset);
    struct hold hold;
    if (self->region)
        WITHOUT_GIL(hold, self, error = up ? region_fence(hold.region, (size_t)offset)
                                           : region_unfence(hold.region, hold.fd,
                                                            (size_t)offset););
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

PyObject *mapping_fence(Mapping *self, PyObject *args) { return move_fence(self, args, true); }

PyObject *mapping_unfence(Mapping *self, PyObject *args) { return move_fence(self, args, false); }
