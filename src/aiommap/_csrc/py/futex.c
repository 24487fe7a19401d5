/* futex.c: the Wakeup type, for a thread that waits for words to change; and waking such threads.
 *
 * Threads wait for words as shared futexes. The kernel finds these by file and offset, so a process
 * is woken at whatever address the other one has mapped them.
 */
#include "futex.h"

#include <errno.h>
#include <limits.h>
#include <time.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include "pin.h"
#include "state.h"

#include "../sys/clock.h"
#include "../sys/guard.h"

/* Numbers of futex(2) and futex_waitv(2): headers may be older than the kernel. */
enum { WAKE = 1, PRIVATE = 128, WORD_OF_32_BITS = 2, SYSTEM_CALL_WAITV = 449 };

struct futex_entry { /* the caller's own; the kernel's struct futex_waitv */
    uint64_t value, address;
    uint32_t flags, reserved;
};

struct moment { int64_t seconds, nanoseconds; }; /* the kernel's struct timespec of 64 bits */

typedef struct {
    PyObject_HEAD
    uint32_t count; /* atomic; a private futex: how often others have woken the thread */
} Wakeup;

static int wake(const uint32_t *at, int count, int flags)
{
#ifdef __linux__
    long woken = syscall(SYS_futex, at, WAKE | flags, count, NULL, NULL, 0);
    return woken < 0 ? -errno : (int)woken;
#else
    (void)at, (void)count, (void)flags;
    return -ENOSYS;
#endif
}

/* Wait until a word differs from its expected value, somebody wakes one, or the moment comes. */
static int wait_any(struct futex_entry *entries, size_t count, const struct moment *until)
{
#ifdef __linux__
    if (syscall(SYSTEM_CALL_WAITV, entries, (unsigned)count, 0, until, CLOCK_MONOTONIC) >= 0)
        return 0;
    return call_is_refused(CALL_FUTEX_WAITV, errno) ? ENOSYS : errno;
#else
    (void)entries, (void)count, (void)until;
    return ENOSYS;
#endif
}

/* Pin a region in which the kernel is to look for a futex. In a writable region the kernel faults
 * the page for writing, which makes it dirty and moves the times of the file, though no byte
 * changes. Through a read-only region it finds the same futex. If that region cannot be mapped, the
 * page gets dirty. */
static void pin_quietly(struct pin *pin, Mapping *mapping)
{
    if (mapping->region && mapping->region->writable && !mapping->quiet) {
        struct region_options options = mapping_options(mapping);
        options.writable = false;
        region_map(&mapping->quiet, mapping->fd, mapping->region->length, &options);
    }
    pin_begin(pin, mapping);
    if (mapping->quiet)
        pin_instead(pin, mapping->quiet);
}

/* The kernel finds a fault of the page itself, and reports it as an errno. */
PyObject *words_notify(Words *self, PyObject *const *args, Py_ssize_t count)
{
    int woken;
    long most = count == 1 ? PyLong_AsLong(args[0]) : -1;
    if (most < 0 || most > INT_MAX)
        return PyErr_Occurred() ? NULL : os_error(EINVAL);
    if (!words_allowed(self, self->offset, false))
        return NULL;
    struct pin pin;
    pin_quietly(&pin, self->mapping);
    /* SAFETY: words_allowed; the region is held while the GIL is not. */
    const uint32_t *at = (uint32_t *)(pin.region->base + self->offset);
    if (words_present(self, self->offset, coarse_clock())) {
        woken = wake(at, (int)most, 0);
    } else {
        Py_BEGIN_ALLOW_THREADS
        woken = wake(at, (int)most, 0);
        Py_END_ALLOW_THREADS
    }
    pin_end(&pin);
    return woken < 0 ? os_error(-woken) : PyLong_FromLong(woken);
}

/* The arrays that a wait needs; `count` says how much of them is in use. Entry 0 is the Wakeup;
 * word i is entry i + 1. */
struct waiting { /* the caller's own */
    struct futex_entry entries[MAX_WAIT_WORDS + 1];
    struct pin pins[MAX_WAIT_WORDS];
    bool changed[MAX_WAIT_WORDS];
    int refused[MAX_WAIT_WORDS]; /* why the kernel cannot wait for the word, or 0 */
    size_t count;
};

/* Add one (Words, expected) to a wait; false with an exception, or without one if the word cannot
 * be reached any more. */
static bool take_in(struct waiting *waiting, PyTypeObject *type, PyObject *item)
{
    Words *words;
    unsigned long expected;
    if (!PyArg_ParseTuple(item, "O!k", type, &words, &expected))
        return false;
    Mapping *mapping = words->mapping;
    if (!mapping_is_usable(mapping) ||
        !range_is_valid(words->offset, sizeof(uint32_t), mapping->size))
        return false;
    struct pin *pin = &waiting->pins[waiting->count++];
    pin_quietly(pin, mapping);
    /* SAFETY: just checked, and held until the wait is over. */
    waiting->entries[waiting->count] =
        (struct futex_entry){.value = (uint32_t)expected,
                             .address = (uintptr_t)(pin->region->base + words->offset),
                             .flags = WORD_OF_32_BITS};
    return true;
}

/* Load every word, because the kernel names only one of several that were woken. */
static void check_words(struct waiting *waiting)
{
    int64_t now = coarse_clock();
    for (size_t i = 0; i < waiting->count; i++) {
        const struct futex_entry *entry = &waiting->entries[i + 1];
        /* SAFETY: as in take_in. A page that is gone counts as a change. */
        struct word_call call = {.at = (void *)(uintptr_t)entry->address,
                                 .width = sizeof(uint32_t),
                                 .operation = WORD_LOAD,
                                 .order = ORDER_SEQ_CST};
        waiting->changed[i] = !guard_word(&call, now) || call.seen != entry->value;
    }
}

/* A wait that fails does not say which word is to blame, so ask for each word alone, without waiting.
 * If no word fails, a page was gone for a moment, or the kernel cannot wait for that many words. */
static void ask_each(struct waiting *waiting, int failure)
{
    const struct moment past = {0};
    bool any = failure == EFAULT;
    for (size_t i = 0; i < waiting->count; i++) {
        int error = wait_any(&waiting->entries[i + 1], 1, &past);
        bool can = !error || error == ETIMEDOUT || error == EAGAIN || error == EINTR;
        waiting->refused[i] = can ? 0 : error;
        any = any || !can;
    }
    for (size_t i = 0; i < waiting->count && !any; i++)
        waiting->refused[i] = failure;
}

static void wait_for(struct waiting *waiting)
{
    Py_BEGIN_ALLOW_THREADS
    int error = wait_any(waiting->entries, waiting->count + 1, NULL);
    if (error && error != EAGAIN && error != EINTR)
        ask_each(waiting, error);
    check_words(waiting);
    Py_END_ALLOW_THREADS
}

/* [(index, errno) of each word to look at]; errno is 0 where it changed. */
static PyObject *answer(const struct waiting *waiting)
{
    PyObject *found = PyList_New(0);
    for (size_t i = 0; found && i < waiting->count; i++) {
        if (!waiting->changed[i] && !waiting->refused[i])
            continue;
        PyObject *item = Py_BuildValue("(ni)", (Py_ssize_t)i,
                                       waiting->changed[i] ? 0 : waiting->refused[i]);
        if (!item || PyList_Append(found, item))
            Py_CLEAR(found);
        Py_XDECREF(item);
    }
    return found;
}

static PyObject *wakeup_wait(Wakeup *self, PyObject *args)
{
    unsigned int count;
    PyObject *list;
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    if (!PyArg_ParseTuple(args, "IO!:wait", &count, &PyList_Type, &list))
        return NULL;
    if (PyList_Size(list) > MAX_WAIT_WORDS)
        return PyErr_Format(PyExc_ValueError, "one wait is for at most %d words", MAX_WAIT_WORDS);
    struct waiting *waiting = PyMem_Calloc(1, sizeof *waiting);
    if (!waiting)
        return PyErr_NoMemory();
    waiting->entries[0] = (struct futex_entry){.value = count,
                                               .address = (uintptr_t)&self->count,
                                               .flags = WORD_OF_32_BITS | PRIVATE};
    bool all = true;
    for (Py_ssize_t i = 0; all && i < PyList_Size(list); i++)
        all = take_in(waiting, state->word_type, PyList_GetItem(list, i));
    PyObject *found = NULL;
    if (all) {
        wait_for(waiting);
        found = answer(waiting);
    } else if (!PyErr_Occurred()) {
        found = Py_BuildValue("[(ni)]", (Py_ssize_t)waiting->count, 0);
    }
    while (waiting->count)
        pin_end(&waiting->pins[--waiting->count]);
    PyMem_Free(waiting);
    return found;
}

static PyObject *wakeup_wake(Wakeup *self, PyObject *Py_UNUSED(unused))
{
    __atomic_fetch_add(&self->count, 1, __ATOMIC_SEQ_CST);
    wake(&self->count, 1, PRIVATE);
    Py_RETURN_NONE;
}

static PyObject *wakeup_count(Wakeup *self, PyObject *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLong(__atomic_load_n(&self->count, __ATOMIC_SEQ_CST));
}

static PyMethodDef wakeup_methods[] = { /* documented in _native.pyi */
    {"wait", (PyCFunction)wakeup_wait, METH_VARARGS, NULL},
    {"wake", (PyCFunction)wakeup_wake, METH_NOARGS, NULL},
    {"count", (PyCFunction)wakeup_count, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static void wakeup_dealloc(Wakeup *self)
{
    object_free(self);
}

static PyType_Slot wakeup_slots[] = {
    {Py_tp_dealloc, wakeup_dealloc},
    {Py_tp_methods, wakeup_methods},
    {0, NULL},
};

PyType_Spec wakeup_spec = {
    .name = "aiommap._native.Wakeup",
    .basicsize = sizeof(Wakeup),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = wakeup_slots,
};
