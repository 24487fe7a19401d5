/* lease.c: Lease, an exported buffer over part of a mapping; Receipt, proof of one write. */
#include "../sys/guard.h"
#include "mapping.h"

#include <structmember.h>

static void lease_link(Lease *lease)
{
    Mapping *mapping = lease->mapping;
    lease->linked = true;
    lease->next = mapping->leases;
    if (lease->next)
        lease->next->previous = lease;
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
        lease->region->holders++;
    }
    lease_link(lease);
    guard_refresh(); /* its memory is going to be touched by others */
    /* Stored to, or in mode "c" made private, at any moment from here on. Marking them now also
     * allocates the bitmap, so that marking them again when the lease ends cannot fail. */
    int64_t left = mapping_size(self) - offset;
    size_t first, end;
    if (lease->writable && left > 0 &&
        pages_of(offset, length < left ? length : left, &first, &end) &&
        !mapping_dirty(self, first, end, monotonic_clock())) {
        PyErr_NoMemory();
        return false;
    }
    return true;
}

PyObject *mapping_lease(Mapping *self, PyObject *args)
{
    long long offset, length;
    int writable;
    PyObject *place = Py_None;
    if (!PyArg_ParseTuple(args, "LLp|O:lease", &offset, &length, &writable, &place))
        return NULL;
    Lease *lease = lease_make(self, place);
    if (lease && (!mapping_range(self, offset, length) ||
                  !lease_bind(lease, self->region, offset, length, writable)))
        Py_CLEAR(lease);
    return (PyObject *)lease;
}

static int lease_getbuffer(Lease *self, Py_buffer *view, int flags)
{
    static char nothing;
    /* SAFETY: [offset, offset + length) was checked when the lease was made, and the region stays
     * mapped at its full length for as long as the lease is one of its holders (I7). */
    void *at = self->length ? self->region->base + self->offset : &nothing;
    return PyBuffer_FillInfo(view, (PyObject *)self, at, self->length, !self->writable, flags);
}

static int lease_traverse(Lease *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->mapping);
    Py_VISIT(self->place);
    return 0;
}

static void lease_dealloc(Lease *self)
{
    Mapping *mapping = self->mapping;
    PyObject_GC_UnTrack(self);
    if (self->linked)
        lease_unlink(self);
    /* It may have been stored through after the last flush began. */
    int64_t left = mapping_size(mapping) - self->offset;
    size_t first, end;
    if (self->writable && !mapping->closed && left > 0 &&
        pages_of(self->offset, self->length < left ? self->length : left, &first, &end))
        mapping_dirty(mapping, first, end, monotonic_clock());
    region_release(self->region);
    Py_DECREF(self->place);
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

PyObject *receipt_make(Mapping *self, int64_t offset, int64_t length, uint64_t sequence)
{
    if (!self->receipt_type || !self->owner)
        return PyErr_Format(PyExc_RuntimeError, "attach() an owner before writing");
    Receipt *receipt = (Receipt *)PyType_GenericAlloc(self->receipt_type, 0);
    if (receipt) {
        receipt->owner = Py_NewRef(self->owner);
        receipt->offset = offset;
        receipt->length = length;
        receipt->sequence = sequence;
    }
    return (PyObject *)receipt;
}

static PyObject *receipt_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *owner;
    long long offset, length;
    unsigned long long sequence;
    if (!PyArg_ParseTuple(args, "OLLK:Receipt", &owner, &offset, &length, &sequence))
        return NULL;
    Receipt *self = (Receipt *)PyType_GenericAlloc(type, 0);
    if (self) {
        self->owner = Py_NewRef(owner);
        self->offset = offset;
        self->length = length;
        self->sequence = sequence;
    }
    return (PyObject *)self;
}

/* Its owner knows those who are to be told of a failure, and they may well keep receipts. */
static int receipt_traverse(Receipt *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->owner);
    return 0;
}

static void receipt_dealloc(Receipt *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->owner);
    object_free(self);
}

#define FIELD(name, field, kind, flags, doc) {name, kind, offsetof(Receipt, field), flags, doc}
static PyMemberDef receipt_members[] = {
    FIELD("_owner", owner, T_OBJECT_EX, READONLY, NULL),
    FIELD("offset", offset, T_LONGLONG, READONLY, "First byte written, from the start of the file."),
    FIELD("length", length, T_LONGLONG, READONLY, "Number of bytes written."),
    FIELD("sequence", sequence, T_ULONGLONG, READONLY,
          "Number of the write among the writes of its file."),
    FIELD("_settled", settled, T_BOOL, 0, NULL),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot receipt_slots[] = {
    {Py_tp_new, receipt_new},
    {Py_tp_dealloc, receipt_dealloc},
    {Py_tp_traverse, receipt_traverse},
    {Py_tp_members, receipt_members},
    {0, NULL},
};

PyType_Spec receipt_spec = {
    .name = "aiommap._native.Receipt",
    .basicsize = sizeof(Receipt),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = receipt_slots,
};
