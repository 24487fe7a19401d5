/* log_record.c: see log_record.h. */
#include "log_record.h"

#include <stddef.h>
#include <structmember.h>

#include "state.h"

typedef struct {
    PyObject_HEAD
    unsigned long long sequence; /* constant */
    PyObject *data;              /* constant */
    unsigned int life;           /* constant */
} LogRecord;

typedef struct {
    PyObject_HEAD
    PyObject *owner;             /* constant, strong */
    unsigned long long sequence; /* constant */
    Py_ssize_t count;            /* constant */
} LogReceipt;

/* LogRecord. */

PyObject *log_record_make(PyTypeObject *type, uint64_t sequence, uint32_t life, PyObject *data)
{
    LogRecord *self = (LogRecord *)PyType_GenericAlloc(type, 0);
    if (!self) {
        Py_DECREF(data);
        return NULL;
    }
    self->sequence = sequence;
    self->life = life;
    self->data = data;
    return (PyObject *)self;
}

static PyObject *record_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sequence", "data", "life", NULL};
    unsigned long long sequence;
    unsigned int life;
    PyObject *data;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KSI:LogRecord", names, &sequence, &data, &life))
        return NULL;
    return log_record_make(type, sequence, life, Py_NewRef(data));
}

static void record_dealloc(LogRecord *self)
{
    Py_XDECREF(self->data);
    object_free(self);
}

#define RECORD_FIELD(name, kind) {#name, kind, offsetof(LogRecord, name), READONLY, NULL}
static PyMemberDef record_members[] = {
    RECORD_FIELD(sequence, T_ULONGLONG),
    RECORD_FIELD(data, T_OBJECT_EX),
    RECORD_FIELD(life, T_UINT),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot record_slots[] = {
    {Py_tp_new, record_new},
    {Py_tp_dealloc, record_dealloc},
    {Py_tp_members, record_members},
    {0, NULL},
};

PyType_Spec log_record_spec = {
    .name = "aiommap.LogRecord",
    .basicsize = sizeof(LogRecord),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = record_slots,
};

/* LogReceipt. */

bool log_is_receipt_type(PyTypeObject *asking, PyObject *type)
{
    const struct native_state *state = PyType_GetModuleState(asking);
    bool is_one = PyType_Check(type) &&
                  PyType_IsSubtype((PyTypeObject *)type, state->log_receipt_type);
    if (!is_one)
        PyErr_Format(PyExc_TypeError, "%R is no LogReceipt", type);
    return is_one;
}

PyObject *log_receipt_make(PyTypeObject *type, PyObject *owner, uint64_t sequence,
                           Py_ssize_t count)
{
    LogReceipt *self = (LogReceipt *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->owner = Py_NewRef(owner);
    self->sequence = sequence;
    self->count = count;
    return (PyObject *)self;
}

static PyObject *receipt_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"owner", "sequence", "count", NULL};
    PyObject *owner;
    unsigned long long sequence;
    Py_ssize_t count = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OK|n:LogReceipt", names, &owner, &sequence,
                                     &count))
        return NULL;
    return log_receipt_make(type, owner, sequence, count);
}

static int receipt_traverse(LogReceipt *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->owner);
    return 0;
}

static void receipt_dealloc(LogReceipt *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->owner);
    object_free(self);
}

static PyMemberDef receipt_members[] = {
    {"_owner", T_OBJECT_EX, offsetof(LogReceipt, owner), READONLY, NULL},
    {"sequence", T_ULONGLONG, offsetof(LogReceipt, sequence), READONLY, NULL},
    {"count", T_PYSSIZET, offsetof(LogReceipt, count), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot receipt_slots[] = {
    {Py_tp_new, receipt_new},
    {Py_tp_dealloc, receipt_dealloc},
    {Py_tp_traverse, receipt_traverse},
    {Py_tp_members, receipt_members},
    {0, NULL},
};

PyType_Spec log_receipt_spec = {
    .name = "aiommap.LogReceipt",
    .basicsize = sizeof(LogReceipt),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = receipt_slots,
};
