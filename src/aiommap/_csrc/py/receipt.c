#include "receipt.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *owner;   /* constant, strong */
    int64_t offset;    /* constant */
    int64_t length;    /* constant */
    uint64_t sequence; /* constant, once it is not 0 (gather.1) */
    bool settled;      /* GIL; written by Python; a flush of its own range made it durable */
} Receipt;

PyObject *receipt_make(const Mapping *mapping, int64_t offset, int64_t length, uint64_t sequence)
{
    if (!mapping->receipt_type || !mapping->owner)
        return PyErr_Format(PyExc_RuntimeError, "attach() an owner before writing");
    Receipt *receipt = (Receipt *)PyType_GenericAlloc(mapping->receipt_type, 0);
    if (receipt) {
        receipt->owner = Py_NewRef(mapping->owner);
        receipt->offset = offset;
        receipt->length = length;
        receipt->sequence = sequence;
    }
    return (PyObject *)receipt;
}

void receipt_number(PyObject *receipt, uint64_t sequence)
{
    ((Receipt *)receipt)->sequence = sequence;
}

bool receipt_awaits(const struct native_state *state, PyObject *object, uint64_t *sequence)
{
    if (!PyObject_TypeCheck(object, state->receipt_type))
        return false;
    *sequence = ((Receipt *)object)->sequence;
    return !((Receipt *)object)->settled;
}

struct run *receipt_runs(const struct native_state *state, PyObject *list, Py_ssize_t *count)
{
    *count = PyList_CheckExact(list) ? PyList_Size(list) : 0;
    struct run *runs = PyMem_Calloc((size_t)*count + 1, sizeof *runs);
    if (!runs)
        return (struct run *)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < *count; i++) {
        PyObject *item = PyList_GetItem(list, i);
        if (PyObject_TypeCheck(item, state->receipt_type)) {
            const Receipt *receipt = (const Receipt *)item;
            runs[i] = (struct run){receipt->offset, receipt->offset + receipt->length};
        } else if (PyTuple_CheckExact(item) && PyTuple_Size(item) == 2 &&
                   PyLong_CheckExact(PyTuple_GetItem(item, 0)) &&
                   PyLong_CheckExact(PyTuple_GetItem(item, 1))) {
            runs[i].start = PyLong_AsLongLong(PyTuple_GetItem(item, 0));
            runs[i].end = PyLong_AsLongLong(PyTuple_GetItem(item, 1));
        } else {
            PyMem_Free(runs);
            return (struct run *)PyErr_Format(PyExc_TypeError,
                                              "%R is no receipt, and no (start, end)", item);
        }
        if (PyErr_Occurred()) { /* too large */
            PyMem_Free(runs);
            return NULL;
        }
    }
    return runs;
}

static PyObject *receipt_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *owner;
    long long offset, length;
    unsigned long long sequence;
    if (!PyArg_ParseTuple(args, "OLLK:Receipt", &owner, &offset, &length, &sequence))
        return NULL;
    Receipt *receipt = (Receipt *)PyType_GenericAlloc(type, 0);
    if (receipt) {
        receipt->owner = Py_NewRef(owner);
        receipt->offset = offset;
        receipt->length = length;
        receipt->sequence = sequence;
    }
    return (PyObject *)receipt;
}

/* The owner refers to callbacks for failures, which may well keep receipts. */
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
    .name = "aiommap.Receipt",
    .basicsize = sizeof(Receipt),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = receipt_slots,
};
