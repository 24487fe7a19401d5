#include "lease.h"

#include "accounting.h"
#include "pin.h"
#include "resize.h"
#include "state.h"

#include "../sys/clock.h"
#include "../sys/guard.h"

static void lease_link(Lease *lease)
{
    Mapping *mapping = lease->mapping;
    lease->linked = true;
    lease->next = mapping->leases;
    if (lease->next)
        lease->next->previous = lease;
    else
        mapping->oldest_lease = lease;
    mapping->leases = lease;
    mapping->lease_count++;
    mapping->writable_leases += lease->writable;
    mapping->growable_leases += lease->region && lease->region->growth;
}

static void lease_unlink(Lease *lease)
{
    lease->mapping->lease_count--;
    lease->mapping->writable_leases -= lease->writable;
    lease->mapping->ended_leases += lease->writable;
    lease->mapping->growable_leases -= lease->region && lease->region->growth;
    lease->linked = false;
    if (lease->previous)
        lease->previous->next = lease->next;
    else
        lease->mapping->leases = lease->next;
    if (lease->next)
        lease->next->previous = lease->previous;
    else
        lease->mapping->oldest_lease = lease->previous;
}

/* The pages of a lease that the file has; false if there are none. */
static bool lease_pages(const Lease *lease, size_t *first, size_t *end)
{
    int64_t left = lease->mapping->size - lease->offset;
    int64_t length = lease->length < left ? lease->length : left;
    return length > 0 && pages_of(lease->offset, length, first, end);
}

static bool mark_dirty(const Lease *lease, int64_t now)
{
    size_t first, end;
    return !lease->writable || !lease_pages(lease, &first, &end) ||
           account_dirty(lease->mapping, first, end, now);
}

bool mapping_mark_leased(Mapping *self)
{
    int64_t now = monotonic_clock();
    Py_ssize_t writable = self->writable_leases; /* among perhaps very many others */
    mapping_size(self);
    for (const Lease *lease = self->leases; writable > 0; lease = lease->next) {
        writable -= lease->writable;
        if (!mark_dirty(lease, now))
            return false;
    }
    return true;
}

Lease *lease_make(Mapping *self, PyObject *place)
{
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    Lease *lease = (Lease *)PyType_GenericAlloc(state->lease_type, 0);
    if (!lease)
        return NULL;
    lease->mapping = (Mapping *)Py_NewRef((PyObject *)self);
    lease->place = Py_NewRef(place);
    return lease;
}

bool lease_bind(Lease *lease, struct region *region, int64_t offset, int64_t length, bool writable)
{
    Mapping *self = lease->mapping;
    lease->offset = offset;
    lease->length = (Py_ssize_t)length;
    lease->writable = writable && self->writable;
    if (length) {
        lease->region = region;
        region_retain(region);
    }
    lease_link(lease);
    mapping_size(self);
    /* From here on somebody may store to the pages at any moment, which in mode "c" makes them
     * private. Marking them now also allocates the bitmap, so that marking them again when the
     * lease ends cannot fail. */
    if (!mark_dirty(lease, monotonic_clock())) {
        PyErr_NoMemory();
        return false;
    }
    return true;
}

PyObject *mapping_lease(Mapping *self, PyObject *args)
{
    long long offset, length;
    int writable;
    PyObject *place = Py_None, *anchor = Py_None;
    if (!PyArg_ParseTuple(args, "LLp|OO:lease", &offset, &length, &writable, &place, &anchor))
        return NULL;
    Lease *lease = lease_make(self, place);
    if (lease)
        lease->anchor = Py_NewRef(anchor);
    mapping_size(self);
    if (lease && (!mapping_range(self, offset, length) ||
                  !lease_bind(lease, self->region, offset, length, writable)))
        Py_CLEAR(lease);
    return (PyObject *)lease;
}

PyObject *mapping_oldest_leases(Mapping *self, PyObject *limit)
{
    Py_ssize_t most = PyLong_AsSsize_t(limit), count = 0, made = 0;
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (most < 0 || most > self->lease_count)
        most = self->lease_count;
    /* Copy first: making Python objects can collect garbage, and with it the lease at hand. */
    struct { long long offset, end; PyObject *place; } *found;
    found = PyMem_Calloc((size_t)most + 1, sizeof *found);
    if (!found)
        return PyErr_NoMemory();
    for (Lease *lease = self->oldest_lease; count < most; lease = lease->previous, count++) {
        found[count].offset = lease->offset;
        found[count].end = lease->offset + lease->length;
        found[count].place = Py_NewRef(lease->place);
    }
    PyObject *list = PyList_New(count), *item = list;
    for (; item && made < count; made++) {
        item = Py_BuildValue("LLO", found[made].offset, found[made].end, found[made].place);
        PyList_SetItem(list, made, item);
    }
    if (!item)
        Py_CLEAR(list);
    while (count)
        Py_DECREF(found[--count].place);
    PyMem_Free(found);
    return list;
}

static int lease_getbuffer(Lease *self, Py_buffer *view, int flags)
{
    static char nothing;
    /* SAFETY: [offset, offset + length) was checked when the lease was made, and the region stays
     * mapped at its full length for as long as the lease has a reference (I7). */
    void *at = self->length ? self->region->base + self->offset : &nothing;
    guard_refresh(); /* others are going to touch the memory */
    return PyBuffer_FillInfo(view, (PyObject *)self, at, self->length, !self->writable, flags);
}

static int lease_traverse(Lease *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->mapping);
    Py_VISIT(self->place);
    Py_VISIT(self->anchor);
    return 0;
}

static void lease_dealloc(Lease *self)
{
    Mapping *mapping = self->mapping;
    PyObject_GC_UnTrack(self);
    if (self->linked)
        lease_unlink(self);
    mapping_size(mapping);
    if (!mapping->closed)
        mark_dirty(self, monotonic_clock()); /* perhaps stored to since the last flush began */
    region_release(self->region);
    Py_DECREF(self->place);
    Py_XDECREF(self->anchor);
    Py_DECREF(mapping);
    object_free(self);
}

static PyType_Slot lease_slots[] = {
    {Py_tp_dealloc, lease_dealloc},
    {Py_tp_traverse, lease_traverse},
    {Py_bf_getbuffer, lease_getbuffer},
    {0, NULL},
};

PyType_Spec lease_spec = {
    .name = "aiommap._native.Lease",
    .basicsize = sizeof(Lease),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = lease_slots,
};
