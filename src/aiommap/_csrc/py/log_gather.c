/* log_gather.c: see log_gather.h. */
#include "log_gather.h"

#include <pthread.h>
#include <stddef.h>
#include <structmember.h>

#include "awaited.h"
#include "log_record.h"
#include "state.h"

#include "../sys/forks.h"

typedef struct {
    Awaited awaited;
    PyObject *owner; /* strong; the log whose receipt is the outcome; NULL for no receipt */
} LogWait;

struct answer { /* strong; GIL; all NULL, or none */
    PyObject *waits, *outcomes;
    PyObject *then; /* called with whether the tasks have run */
};

typedef struct {
    PyObject_HEAD

    /* Constant. */
    PyTypeObject *receipt_type;
    PyTypeObject *wait_type;
    PyObject *loop, *call_soon;
    PyObject *current_task; /* of asyncio */
    Py_ssize_t max_record;
    pthread_t thread; /* of the loop */

    /* GIL; written by this file. */
    PyObject *items, *waits; /* strong; of the batch that gathers, or NULL */
    Py_ssize_t limit;        /* how many items share a batch */
    bool refuses;            /* every append has to look at the log first */
    bool holds;              /* the next answer waits for `wake` */
    struct answer held;
} LogGather;

/* LogWait. */

/* A loop that ends leaves a cycle: task, coroutine, LogWait, what wakes the task. */
static int wait_traverse(LogWait *self, visitproc visit, void *arg)
{
    Py_VISIT(self->owner);
    return awaited_visit(&self->awaited, visit, arg);
}

static int wait_clear(LogWait *self)
{
    Py_CLEAR(self->owner);
    awaited_clear(&self->awaited);
    return 0;
}

static void wait_dealloc(LogWait *self)
{
    PyObject_GC_UnTrack(self);
    wait_clear(self);
    object_free(self);
}

static PyType_Slot wait_slots[] = {
    {Py_tp_dealloc, wait_dealloc},
    {Py_tp_traverse, wait_traverse},
    {Py_tp_clear, wait_clear},
    {0, NULL},
};

PyType_Spec log_wait_spec = {
    .name = "aiommap._native.LogWait",
    .basicsize = sizeof(LogWait),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = wait_slots,
};

/* LogGather. */

static PyObject *gather_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *receipt_type, *loop, *call_soon;
    Py_ssize_t max_record;
    if (!PyArg_ParseTuple(args, "OOOn:LogGather", &receipt_type, &loop, &call_soon, &max_record) ||
        !log_is_receipt_type(type, receipt_type))
        return NULL;
    const struct native_state *state = PyType_GetModuleState(type);
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    PyObject *current_task = asyncio ? PyObject_GetAttrString(asyncio, "current_task") : NULL;
    Py_XDECREF(asyncio);
    LogGather *self = current_task ? (LogGather *)PyType_GenericAlloc(type, 0) : NULL;
    if (!self) {
        Py_XDECREF(current_task);
        return NULL;
    }
    self->receipt_type = (PyTypeObject *)Py_NewRef(receipt_type);
    self->wait_type = (PyTypeObject *)Py_NewRef((PyObject *)state->log_wait_type);
    self->loop = Py_NewRef(loop);
    self->call_soon = Py_NewRef(call_soon);
    self->current_task = current_task;
    self->max_record = max_record;
    self->thread = pthread_self();
    self->limit = PY_SSIZE_T_MAX;
    return (PyObject *)self;
}

static LogWait *make_wait(const LogGather *self, PyObject *owner)
{
    LogWait *wait = (LogWait *)PyType_GenericAlloc(self->wait_type, 0);
    if (!wait)
        return NULL;
    awaited_begin(&wait->awaited, self->loop, self->call_soon);
    wait->owner = Py_NewRef(owner);
    return wait;
}

/* wait(owner): what a task awaits for the receipt of an append. */
static PyObject *gather_wait(LogGather *self, PyObject *owner)
{
    return (PyObject *)make_wait(self, owner);
}

/* join(owner, data) */
static PyObject *gather_join(LogGather *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "join() takes a log and data");
    if (!self->items || self->refuses || !PyBytes_CheckExact(args[1]) ||
        PyBytes_Size(args[1]) > self->max_record || PyList_Size(self->items) + 1 >= self->limit ||
        !pthread_equal(self->thread, pthread_self()))
        Py_RETURN_NONE;
    LogWait *wait = make_wait(self, args[0]);
    if (!wait)
        return NULL;
    if (PyList_Append(self->waits, (PyObject *)wait)) {
        Py_DECREF((PyObject *)wait);
        return NULL;
    }
    if (PyList_Append(self->items, args[1])) {
        Py_ssize_t last = PyList_Size(self->waits) - 1;
        PyList_SetSlice(self->waits, last, last + 1, NULL);
        Py_DECREF((PyObject *)wait);
        return NULL;
    }
    return (PyObject *)wait;
}

static PyObject *gather_shut(LogGather *self, PyObject *Py_UNUSED(unused))
{
    Py_CLEAR(self->items);
    Py_CLEAR(self->waits);
    Py_RETURN_NONE;
}

/* open(items, waits): the lists of the batch that gathers from now on. */
static PyObject *gather_open(LogGather *self, PyObject *args)
{
    PyObject *items, *waits;
    if (!PyArg_ParseTuple(args, "O!O!:open", &PyList_Type, &items, &PyList_Type, &waits))
        return NULL;
    Py_XDECREF(gather_shut(self, NULL));
    self->items = Py_NewRef(items);
    self->waits = Py_NewRef(waits);
    Py_RETURN_NONE;
}

/* set_limit(items): the item that fills a batch has to come by the queue. */
static PyObject *gather_set_limit(LogGather *self, PyObject *items)
{
    Py_ssize_t limit = PyLong_AsSsize_t(items);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    self->limit = limit;
    Py_RETURN_NONE;
}

static PyObject *gather_refuse(LogGather *self, PyObject *Py_UNUSED(unused))
{
    self->refuses = true;
    Py_RETURN_NONE;
}

static PyObject *gather_hold(LogGather *self, PyObject *Py_UNUSED(unused))
{
    self->holds = true;
    Py_RETURN_NONE;
}

/* Whether no task of the loop runs, and it is not in debug mode; -1 with an exception. */
static int can_wake(const LogGather *self)
{
    PyObject *task = PyObject_CallFunctionObjArgs(self->current_task, self->loop, NULL);
    PyObject *debug = task ? PyObject_CallMethod(self->loop, "get_debug", NULL) : NULL;
    int debugs = debug ? PyObject_IsTrue(debug) : -1;
    bool runs = task && !Py_IsNone(task);
    Py_XDECREF(debug);
    Py_XDECREF(task);
    return debugs < 0 ? -1 : !debugs && !runs;
}

/* Answer whatever else waits, such as a future; false with an exception. */
static bool answer_other(const LogGather *self, PyObject *waiter, PyObject *outcome)
{
    const struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    PyObject *done = PyObject_CallMethodObjArgs(waiter, state->done, NULL), *answer = NULL;
    int cancelled = done ? PyObject_IsTrue(done) : -1;
    if (!cancelled)
        answer = PyObject_CallMethodObjArgs(waiter, state->set_result, outcome, NULL);
    bool answered = cancelled > 0 || answer;
    Py_XDECREF(done);
    Py_XDECREF(answer);
    return answered;
}

/* The exception that is pending, as an outcome. */
static PyObject *caught(void)
{
    PyObject *kind, *error, *traceback;
    PyErr_Fetch(&kind, &error, &traceback);
    PyErr_NormalizeException(&kind, &error, &traceback);
    Py_XDECREF(kind);
    Py_XDECREF(traceback);
    return error;
}

/* Answer an append; false with an exception. */
static bool answer_append(const LogGather *self, LogWait *wait, PyObject *outcome, bool now)
{
    bool raises = !PyLong_CheckExact(outcome);
    PyObject *told = raises ? Py_NewRef(outcome)
                            : log_receipt_make(self->receipt_type, wait->owner,
                                               PyLong_AsUnsignedLongLong(outcome), 1);
    if (!told) {
        told = caught();
        raises = true;
    }
    bool answered = awaited_answer(&wait->awaited, told, raises, now);
    Py_DECREF(told);
    return answered;
}

/* Answer each in order; false with an exception, but all are answered. */
static bool answer_all(const LogGather *self, const struct answer *answer, bool now)
{
    PyObject *kind = NULL, *error, *traceback;
    unsigned long forks = fork_generation; /* a task that runs here may fork, and be the child's */
    for (Py_ssize_t i = 0; i < PyList_Size(answer->waits) && forks == fork_generation; i++) {
        PyObject *wait = Py_NewRef(PyList_GetItem(answer->waits, i));
        PyObject *outcome = PySequence_GetItem(answer->outcomes, i);
        bool answered;
        if (!outcome)
            outcome = caught();
        if (Py_IS_TYPE(wait, self->wait_type))
            answered = answer_append(self, (LogWait *)wait, outcome, now && !kind);
        else
            answered = answer_other(self, wait, outcome);
        if (!answered && !kind)
            PyErr_Fetch(&kind, &error, &traceback);
        else if (!answered)
            PyErr_WriteUnraisable(wait);
        Py_DECREF(outcome);
        Py_DECREF(wait);
    }
    if (kind)
        PyErr_Restore(kind, error, traceback);
    return !kind;
}

/* Call what follows an answer, whatever exception is pending; false if one is then. */
static bool call_then(const struct answer *answer, bool now)
{
    PyObject *kind, *error, *traceback;
    PyErr_Fetch(&kind, &error, &traceback);
    PyObject *called = PyObject_CallFunctionObjArgs(answer->then, now ? Py_True : Py_False, NULL);
    if (!called && kind)
        PyErr_WriteUnraisable(answer->then);
    bool fine = called && !kind;
    Py_XDECREF(called);
    if (kind)
        PyErr_Restore(kind, error, traceback);
    return fine;
}

/* answer(waits, outcomes, then) */
static PyObject *gather_answer(LogGather *self, PyObject *args)
{
    struct answer answer;
    if (!PyArg_ParseTuple(args, "O!OO:answer", &PyList_Type, &answer.waits, &answer.outcomes,
                          &answer.then))
        return NULL;
    if (self->holds && !self->held.waits) {
        self->held = (struct answer){Py_NewRef(answer.waits), Py_NewRef(answer.outcomes),
                                     Py_NewRef(answer.then)};
        Py_RETURN_NONE;
    }
    answer_all(self, &answer, false);
    if (!call_then(&answer, false))
        return NULL;
    Py_RETURN_NONE;
}

static void let_go(struct answer *answer)
{
    Py_CLEAR(answer->waits);
    Py_CLEAR(answer->outcomes);
    Py_CLEAR(answer->then);
}

/* wake(): give the answer that was held, and run the tasks. */
static PyObject *gather_wake(LogGather *self, PyObject *Py_UNUSED(unused))
{
    struct answer answer = self->held;
    self->held = (struct answer){NULL, NULL, NULL};
    self->holds = false;
    if (!answer.waits)
        Py_RETURN_NONE;
    int now = can_wake(self);
    if (now < 0)
        PyErr_Clear(); /* then the loop wakes them */
    answer_all(self, &answer, now > 0);
    bool fine = call_then(&answer, now > 0);
    let_go(&answer);
    if (!fine)
        return NULL;
    Py_RETURN_NONE;
}

static int gather_traverse(LogGather *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->receipt_type);
    Py_VISIT(self->wait_type);
    Py_VISIT(self->loop);
    Py_VISIT(self->call_soon);
    Py_VISIT(self->current_task);
    Py_VISIT(self->items);
    Py_VISIT(self->waits);
    Py_VISIT(self->held.waits);
    Py_VISIT(self->held.outcomes);
    Py_VISIT(self->held.then);
    return 0;
}

static int gather_clear(LogGather *self)
{
    Py_XDECREF(gather_shut(self, NULL));
    let_go(&self->held);
    return 0;
}

static void gather_dealloc(LogGather *self)
{
    PyObject_GC_UnTrack(self);
    gather_clear(self);
    Py_XDECREF((PyObject *)self->receipt_type);
    Py_XDECREF((PyObject *)self->wait_type);
    Py_XDECREF(self->loop);
    Py_XDECREF(self->call_soon);
    Py_XDECREF(self->current_task);
    object_free(self);
}

static PyMethodDef gather_methods[] = { /* documented in _native_log.pyi */
    {"join", (PyCFunction)(void (*)(void))gather_join, METH_FASTCALL, NULL},
    {"wait", (PyCFunction)gather_wait, METH_O, NULL},
    {"open", (PyCFunction)gather_open, METH_VARARGS, NULL},
    {"shut", (PyCFunction)gather_shut, METH_NOARGS, NULL},
    {"set_limit", (PyCFunction)gather_set_limit, METH_O, NULL},
    {"refuse", (PyCFunction)gather_refuse, METH_NOARGS, NULL},
    {"hold", (PyCFunction)gather_hold, METH_NOARGS, NULL},
    {"answer", (PyCFunction)gather_answer, METH_VARARGS, NULL},
    {"wake", (PyCFunction)gather_wake, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gather_slots[] = {
    {Py_tp_new, gather_new},
    {Py_tp_dealloc, gather_dealloc},
    {Py_tp_traverse, gather_traverse},
    {Py_tp_clear, gather_clear},
    {Py_tp_methods, gather_methods},
    {0, NULL},
};

PyType_Spec log_gather_spec = {
    .name = "aiommap._native.LogGather",
    .basicsize = sizeof(LogGather),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gather_slots,
};
