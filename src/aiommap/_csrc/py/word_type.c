/* word_type.c: the types Word and WordArray: arguments and results of words_operate. */
#include "word_type.h"

#include <structmember.h>

#include "futex.h"
#include "state.h"
#include "words.h"

static const struct {
    const char *name;
    unsigned numbers; /* how many values the operation takes */
    unsigned orders;  /* bits of the orders it can have */
} operations[] = {
#define BIT(order) (1u << (order))
#define ANY 0x1f
    [WORD_LOAD] = {"load", 0, BIT(ORDER_SEQ_CST) | BIT(ORDER_ACQUIRE) | BIT(ORDER_RELAXED)},
    [WORD_STORE] = {"store", 1, BIT(ORDER_SEQ_CST) | BIT(ORDER_RELEASE) | BIT(ORDER_RELAXED)},
    [WORD_SWAP] = {"swap", 1, ANY},
    [WORD_ADD] = {"fetch_add", 1, ANY},
    [WORD_SUB] = {"fetch_sub", 1, ANY},
    [WORD_AND] = {"fetch_and", 1, ANY},
    [WORD_OR] = {"fetch_or", 1, ANY},
    [WORD_XOR] = {"fetch_xor", 1, ANY},
    [WORD_COMPARE] = {"compare_exchange", 2, ANY},
};

static const char *const orders[] = {
    [ORDER_SEQ_CST] = "seq_cst", [ORDER_ACQ_REL] = "acq_rel", [ORDER_ACQUIRE] = "acquire",
    [ORDER_RELEASE] = "release", [ORDER_RELAXED] = "relaxed",
};

static bool refuse_order(struct word_call *call, PyObject *name, const char *found)
{
    const char *rest = call->operation == WORD_LOAD    ? "\"seq_cst\", \"acquire\" or \"relaxed\""
                       : call->operation == WORD_STORE ? "\"seq_cst\", \"release\" or \"relaxed\""
                                                       : "\"seq_cst\", \"acq_rel\", \"acquire\", "
                                                         "\"release\" or \"relaxed\"";
    PyErr_Format(PyExc_ValueError, "order %R %s %s: use %s", name, found,
                 operations[call->operation].name, rest);
    return false;
}

static bool parse_order(PyObject *name, struct word_call *call)
{
    if (!PyUnicode_Check(name)) {
        PyErr_Format(PyExc_TypeError, "order is %R: it is a string, such as \"relaxed\"", name);
        return false;
    }
    for (unsigned order = 0; order < sizeof orders / sizeof *orders; order++) {
        if (PyUnicode_CompareWithASCIIString(name, orders[order]))
            continue;
        call->order = (enum word_order)order;
        if (operations[call->operation].orders & BIT(order))
            return true;
        return refuse_order(call, name, "means nothing for");
    }
    return refuse_order(call, name, "is unknown to");
}

static bool parse_value(const Words *self, PyObject *object, uint64_t *value)
{
    PyObject *integer = PyNumber_Index(object);
    if (!integer) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "value is %R: give an integer", object);
        return false;
    }
    *value = PyLong_AsUnsignedLongLong(integer);
    Py_DECREF(integer);
    bool failed = *value == UINT64_MAX && PyErr_Occurred();
    if (!failed && (self->width == sizeof(uint64_t) || *value <= UINT32_MAX))
        return true;
    if (failed && !PyErr_ExceptionMatches(PyExc_OverflowError))
        return false;
    PyErr_Format(PyExc_OverflowError, "value %S is no unsigned integer of %u bits: use 0 to 2**%u - 1",
                 object, 8 * self->width, 8 * self->width);
    return false;
}

/* The offset of word number `object` of an array. */
static bool parse_index(const Words *self, PyObject *object, int64_t *at)
{
    Py_ssize_t index = PyNumber_AsSsize_t(object, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "index is %R: give an integer", object);
        return false;
    }
    if (index < 0 || index >= self->count) {
        PyErr_Format(PyExc_IndexError, "word %zd of an array of %lld: they count from 0", index,
                     (long long)self->count);
        return false;
    }
    *at = self->offset + index * (int64_t)self->width;
    return true;
}

static bool parse(const Words *self, PyObject *const *args, Py_ssize_t count, PyObject *names,
                  struct word_call *call, int64_t *at)
{
    unsigned numbers = operations[call->operation].numbers;
    const char *name = operations[call->operation].name;
    Py_ssize_t named = names ? PyTuple_Size(names) : 0;
    if (count != (Py_ssize_t)numbers + self->indexed || named > 1) {
        PyErr_Format(PyExc_TypeError, "%s takes %u positional arguments and order=, %zd were given",
                     name, numbers + self->indexed, count);
        return false;
    }
    if (named && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "order")) {
        PyErr_Format(PyExc_TypeError, "%s has no argument %R: it takes order=", name,
                     PyTuple_GetItem(names, 0));
        return false;
    }
    *at = self->offset;
    if (self->indexed && !parse_index(self, *args++, at))
        return false;
    if (numbers == 2 && !parse_value(self, *args++, &call->expected))
        return false;
    if (numbers && !parse_value(self, *args++, &call->value))
        return false;
    return !named || parse_order(*args, call);
}

static PyObject *run(const Words *self, PyObject *const *args, Py_ssize_t count, PyObject *names,
                     enum word_operation operation)
{
    struct word_call call = {.operation = operation, .order = ORDER_SEQ_CST};
    int64_t at;
    if (!parse(self, args, count, names, &call, &at) || !words_operate(self, at, &call))
        return NULL;
    if (operation == WORD_STORE)
        Py_RETURN_NONE;
    if (operation == WORD_COMPARE)
        return Py_BuildValue("(OK)", call.seen == call.expected ? Py_True : Py_False,
                             (unsigned long long)call.seen);
    return PyLong_FromUnsignedLongLong(call.seen);
}

#define METHOD(name, operation)                                                                   \
    static PyObject *words_##name(Words *self, PyObject *const *args, Py_ssize_t count,           \
                                  PyObject *names)                                                \
    {                                                                                             \
        return run(self, args, count, names, operation);                                          \
    }
METHOD(load, WORD_LOAD)
METHOD(store, WORD_STORE)
METHOD(swap, WORD_SWAP)
METHOD(fetch_add, WORD_ADD)
METHOD(fetch_sub, WORD_SUB)
METHOD(fetch_and, WORD_AND)
METHOD(fetch_or, WORD_OR)
METHOD(fetch_xor, WORD_XOR)
METHOD(compare_exchange, WORD_COMPARE)
#undef METHOD

/* The state of the module whose native type `type` is, or is a subclass of. */
static struct native_state *state_of(PyTypeObject *type)
{
    PyTypeObject *base;
    while ((base = PyType_GetSlot(type, Py_tp_base)) != &PyBaseObject_Type)
        type = base;
    return PyType_GetModuleState(type);
}

static PyObject *words_make(PyTypeObject *type, PyObject *args, bool indexed)
{
    Mapping *mapping;
    PyObject *policy;
    long long offset, count = 1;
    unsigned width;
    if (!PyArg_ParseTuple(args, indexed ? "O!OLIL" : "O!OLI", state_of(type)->mapping_type,
                          &mapping, &policy, &offset, &width, &count))
        return NULL;
    if ((width != sizeof(uint32_t) && width != sizeof(uint64_t)) || count < 0 || offset < 0 ||
        offset % width || count > (PTRDIFF_MAX - offset) / (int64_t)width) {
        PyErr_SetString(PyExc_ValueError, "words are 4 or 8 bytes, aligned, inside of a file");
        return NULL;
    }
    Words *self = (Words *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->mapping = (Mapping *)Py_NewRef((PyObject *)mapping);
    self->policy = Py_NewRef(policy);
    self->offset = offset;
    self->count = count;
    self->width = width;
    self->indexed = indexed;
    return (PyObject *)self;
}

static PyObject *word_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    return words_make(type, args, false);
}

static PyObject *word_array_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    return words_make(type, args, true);
}

static Py_ssize_t words_length(const Words *self) { return (Py_ssize_t)self->count; }

static int words_traverse(Words *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->mapping);
    Py_VISIT(self->policy);
    return 0;
}

static void words_dealloc(Words *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF((PyObject *)self->mapping);
    Py_XDECREF(self->policy);
    object_free(self);
}

#define FAST(name, arguments, doc)                                                                \
    {#name, (PyCFunction)(void (*)(void))words_##name, METH_FASTCALL | METH_KEYWORDS,             \
     #name "(" arguments "/, *, order='seq_cst')\n--\n\n" doc}
/* `first` is what stands before the other arguments; for an array that includes the number of the
 * word. */
#define OPERATIONS(first)                                                                         \
    FAST(load, first, "Return the value."),                                                       \
    FAST(store, first "value, ", "Replace the value."),                                           \
    FAST(swap, first "value, ", "Replace the value and return the one before."),                  \
    FAST(fetch_add, first "value, ", "Add, modulo the width, and return the value before."),      \
    FAST(fetch_sub, first "value, ", "Subtract, modulo the width, and return the value before."), \
    FAST(fetch_and, first "value, ", "Clear the bits not set in both; return the value before."), \
    FAST(fetch_or, first "value, ", "Set bits, and return the value before."),                    \
    FAST(fetch_xor, first "value, ", "Flip bits, and return the value before."),                  \
    FAST(compare_exchange, first "expected, new, ",                                               \
         "Replace the value if it is the expected one; return (whether, value before).")

static PyMethodDef word_methods[] = {
    OPERATIONS("$self, "),
    {"_notify", (PyCFunction)(void (*)(void))words_notify, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef word_array_methods[] = {
    OPERATIONS("$self, index, "),
    {NULL, NULL, 0, NULL},
};

static PyMemberDef words_members[] = {
    {"offset", T_LONGLONG, offsetof(Words, offset), READONLY,
     "First byte, from the start of the file."},
    {"_policy", T_OBJECT_EX, offsetof(Words, policy), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot word_slots[] = {
    {Py_tp_new, word_new},
    {Py_tp_dealloc, words_dealloc},
    {Py_tp_traverse, words_traverse},
    {Py_tp_methods, word_methods},
    {Py_tp_members, words_members},
    {0, NULL},
};

static PyType_Slot word_array_slots[] = {
    {Py_tp_new, word_array_new},
    {Py_tp_dealloc, words_dealloc},
    {Py_tp_traverse, words_traverse},
    {Py_tp_methods, word_array_methods},
    {Py_tp_members, words_members},
    {Py_sq_length, words_length},
    {0, NULL},
};

#define WORD_FLAGS                                                                                \
    (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE)
PyType_Spec word_spec = {
    .name = "aiommap.Word",
    .basicsize = sizeof(Words),
    .flags = WORD_FLAGS,
    .slots = word_slots,
};
PyType_Spec word_array_spec = {
    .name = "aiommap.WordArray",
    .basicsize = sizeof(Words),
    .flags = WORD_FLAGS,
    .slots = word_array_slots,
};
