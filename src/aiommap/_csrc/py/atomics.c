/* atomics.c: the types Word and WordArray: atomic operations on words of a mapping.
 *
 * The way of an operation: may it be done (words_allowed), is the page there, the guarded
 * instruction, the books. All of it holds the GIL, unless the page may have to be waited for. What
 * forbids an operation, what a fault was, and what the flush policy wants is said by the policy, a
 * Python object: none of it is on the way of an operation that succeeds.
 */
#include "atomics.h"

#include <errno.h>
#include <structmember.h>
#include <sys/stat.h>

#include "../sys/atomic_word.h"
#include "../sys/guard.h"

int64_t coarse_clock(void)
{
    struct timespec now;
#ifdef CLOCK_MONOTONIC_COARSE
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool is_free(const Words *self, int64_t at, bool store)
{
    const Mapping *mapping = self->mapping;
    return mapping_is_usable(mapping) && range_is_valid(at, self->width, mapping->reach) &&
           (!store || (mapping->inline_writes &&
                       !runs_overlap(at, at + self->width, mapping->queued_start,
                                     mapping->queued_end))); /* I9 */
}

bool words_allowed(const Words *self, int64_t at, bool store)
{
    Mapping *mapping = self->mapping;
    if (is_free(self, at, store))
        return true;
    do {
        mapping_settled(mapping); /* a change may be at work on its page (mapping.3) */
        PyObject *answer = PyObject_CallMethod(self->policy, "check", "LIO", (long long)at,
                                               self->width, store ? Py_True : Py_False);
        if (!answer)
            return false;
        Py_DECREF(answer);
        if (!mapping_range(mapping, at, self->width)) /* I3, whatever the policy thinks */
            return false;
    } while (!range_is_valid(at, self->width, mapping->reach));
    if (store && !mapping->writable) {
        PyErr_SetString(PyExc_ValueError, "the mapping is read-only");
        return false;
    }
    return true;
}

bool words_present(const Words *self, int64_t at, int64_t now)
{
    Mapping *mapping = self->mapping;
    size_t first, end;
    pages_of(at, self->width, &first, &end);
    if (mapping_is_ready(mapping, first, end, now))
        return true;
    if (mapping->locked.count && spans_cover(&mapping->locked, at, at + self->width))
        return true;
    return sees_residency(mapping) &&
           region_is_resident(mapping->region, (size_t)at, self->width);
}

static bool act(const struct region *region, int64_t at, struct word_call *call, int64_t now)
{
    /* SAFETY: words_allowed found [at, at + width) inside the mapping, whose region the caller
     * holds; base is page-aligned and `at` a multiple of width, so the word is aligned. */
    call->at = region->base + at;
    return guard_word(call, now);
}

/* Enter what was done into the books; false with an exception. */
static bool account(const Words *self, int64_t at, bool stored, int64_t now)
{
    Mapping *mapping = self->mapping;
    size_t first, end;
    pages_of(at, self->width, &first, &end);
    if (!pages_has_all(&mapping->ready, first, end) && !mapping_ready(mapping, first, end))
        return PyErr_NoMemory() != NULL;
    if (!stored)
        return true;
    if (!pages_has_all(&mapping->dirty, first, end) && !mapping_dirty(mapping, first, end, now))
        return PyErr_NoMemory() != NULL;
    mapping_count(mapping, at, self->width);
    mapping->sequence++;
    const struct inline_limits *limits = &mapping->inline_limits;
    if (mapping->written_bytes < limits->bytes && mapping->sequence < limits->sequence)
        return true;
    PyObject *answer = PyObject_CallMethod(self->policy, "stored", NULL);
    Py_XDECREF(answer);
    return answer != NULL;
}

/* Have blocks behind a word, where the disk may have had none: 0, and in *reason what it means if the
 * page still cannot be had; or why there are none, also there. Errno numbers. */
static int fill(const Words *self, int64_t at, int *reason)
{
    Mapping *mapping = self->mapping;
    struct pin pin;
    int error = mapping->private_copy ? EFAULT : EAGAIN;
    while (error == EAGAIN)
        WITHOUT_GIL(pin, mapping, error = growth_fill(&mapping->growth, at, self->width, reason););
    if (error)
        *reason = error;
    return error;
}

static bool report_fault(const Words *self, int64_t at, int error)
{
    struct stat found;
    struct pin pin;
    int failed;
    self->mapping->counters.faults++;
    WITHOUT_GIL(pin, self->mapping, failed = fstat(pin.fd, &found););
    long long size = failed ? -1 : (long long)found.st_size;
    PyObject *answer = PyObject_CallMethod(self->policy, "fault", "LLi", (long long)at, size, error);
    if (answer) {
        Py_DECREF(answer);
        PyErr_SetString(PyExc_SystemError, "a fault was not reported");
    }
    return false;
}

/* Whether a store to a word does not enter the kernel, where it may wait: for a flush of ours now and
 * then, and in a frozen file system until it thaws. Unless the kernel has written its page back within
 * the last second, which nothing tells; to give the GIL up for each would cost them half of their rate
 * (docs/decisions.md). */
static bool word_is_hot(const Words *self, int64_t at, int64_t now)
{
    Mapping *mapping = self->mapping;
    size_t first, end;
    pages_of(at, self->width, &first, &end);
    return mapping->inline_writes && /* if stores are to be kept off the loop, nothing is trusted */
           !runs_overlap(at, at + self->width, mapping->writeback_start, mapping->writeback_end) &&
           mapping_is_ready(mapping, first, end, now) &&
           pages_has_all(&mapping->dirty, first, end);
}

/* Do it; false with an exception set. */
static bool operate(const Words *self, int64_t at, struct word_call *call)
{
    Mapping *mapping = self->mapping;
    bool store = call->operation != WORD_LOAD, done, again, filled = false;
    int reason = EFAULT;
    int64_t now;
    call->width = self->width;
    do {
        struct pin pin;
        pin.moved = false;
        if (!words_allowed(self, at, store))
            return false;
        now = coarse_clock();
        if (store ? word_is_hot(self, at, now) : words_present(self, at, now))
            done = act(mapping->region, at, call, now);
        else
            WITHOUT_GIL(pin, mapping, done = act(pin.region, at, call, now););
        /* What has stored is not repeated; but if its page was cut off, it has gone nowhere. */
        again = pin.moved && (!done || !store);
        if (pin.moved && !again && !mapping->closed &&
            !range_is_valid(at, self->width, mapping->reach) &&
            !words_allowed(self, at, false))
            return false;
        if (!done && !again && !filled) {
            filled = true;
            again = !fill(self, at, &reason);
        }
    } while (again);
    if (!done)
        return report_fault(self, at, reason);
    bool stored = store && (call->operation != WORD_COMPARE || call->seen == call->expected);
    return account(self, at, stored, now);
}

static const struct {
    const char *name;
    unsigned numbers; /* how many values it takes */
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

/* Where word number `object` of an array is. */
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
    if (!parse(self, args, count, names, &call, &at) || !operate(self, at, &call))
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
/* `first` is what stands before the other arguments: of an array, the number of the word. */
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
    .name = "aiommap._native.Word",
    .basicsize = sizeof(Words),
    .flags = WORD_FLAGS,
    .slots = word_slots,
};
PyType_Spec word_array_spec = {
    .name = "aiommap._native.WordArray",
    .basicsize = sizeof(Words),
    .flags = WORD_FLAGS,
    .slots = word_array_slots,
};
