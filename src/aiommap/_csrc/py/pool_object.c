#include "pool_object.h"

#include <errno.h>
#include <structmember.h>

#include "state.h"

#include "../sys/forks.h"

/* A task takes some 10 us of the turn in which it is woken. */
#define TASKS_A_TURN 64
/* This many jobs do not wait until the turn is over, which may begin hundreds more. */
#define GATHERED_MOST 64

PER_THREAD size_t thread_cold_reads;

bool pool_is_usable(const Pool *self)
{
    return self->pool && self->forks == fork_generation;
}

static bool call_drain_soon(Pool *self)
{
    if (self->called)
        return true;
    PyObject *drain = PyObject_GetAttrString((PyObject *)self, "drain");
    PyObject *handle = drain ? PyObject_CallFunctionObjArgs(self->call_soon, drain, NULL) : NULL;
    Py_XDECREF(drain);
    Py_XDECREF(handle);
    self->called = handle;
    return handle;
}

static void append_landed(Pool *self, struct pool_job *job)
{
    while (job) {
        struct pool_job *below = job->below;
        job->below = NULL;
        if (self->landed)
            self->last_landed->below = job;
        else
            self->landed = job;
        self->last_landed = job;
        job = below;
    }
}

void pool_flush(Pool *self)
{
    self->gathered_count = 0;
    if (pool_list_is_empty(&self->gathered) || !pool_submit(self->pool, &self->gathered))
        return;
    while (!pool_list_is_empty(&self->gathered)) {
        struct pool_job *job = pool_list_take(&self->gathered);
        ((struct pool_read *)job)->got = -EAGAIN;
        job->below = NULL;
        append_landed(self, job);
    }
}

bool pool_run(Pool *self, size_t count, struct waiting_read *reads)
{
    bool alone = self->reads == 0;
    if (!alone && !call_drain_soon(self))
        return false;
    for (size_t i = 0; i < count; i++)
        pool_list_append(&self->gathered, &reads[i].call.job);
    thread_cold_reads = self->reads += count;
    self->gathered_count += count;
    if (!alone && self->gathered_count < GATHERED_MOST)
        return true;
    pool_flush(self);
    if (self->landed && !call_drain_soon(self)) /* no thread could be started */
        PyErr_Clear(); /* the loop is closed, so nobody waits */
    return true;
}

void pool_note_read(Pool *self) { thread_cold_reads = --self->reads; }

/* Whether the loop is one of asyncio, and not in debug mode; false with an exception as well. */
static bool can_wake(const Pool *self)
{
    if (!self->loop || self->ended)
        return false;
    PyObject *debug = PyObject_CallMethod(self->loop, "get_debug", NULL);
    bool can = debug && PyObject_IsTrue(debug) == 0;
    Py_XDECREF(debug);
    return can;
}

/* How many tasks were woken; -1 with an exception that ends the program. */
static int deliver(Pool *self)
{
    int woken = 0;
    self->wakes_now = self->landed && can_wake(self);
    if (PyErr_Occurred())
        return -1;
    /* A task that runs here may fork, and be the child's. A loop that has ended has no next turn. */
    while (self->landed && (self->ended || woken < TASKS_A_TURN) && pool_is_usable(self)) {
        struct pool_job *job = self->landed;
        self->landed = job->below;
        woken += job->landed(job);
        if (PyErr_Occurred())
            return -1;
    }
    return woken;
}

/* Deliver the rest in the next turn, whatever the exception leads to. */
static void call_drain_after_error(Pool *self)
{
    PyObject *kind, *error, *traceback;
    PyErr_Fetch(&kind, &error, &traceback);
    if (self->landed && !call_drain_soon(self))
        PyErr_Clear(); /* the loop is closed, so nobody waits */
    PyErr_Restore(kind, error, traceback);
}

static size_t in_flight(const Pool *self) { return self->reads + self->commits; }

static bool tell_empty(Pool *self)
{
    PyObject *told = self->when_empty;
    if (in_flight(self) || !told)
        return true;
    self->when_empty = NULL;
    PyObject *answer = PyObject_CallFunctionObjArgs(told, NULL);
    Py_DECREF(told);
    Py_XDECREF(answer);
    return answer;
}

/* Tasks that wake while many reads are in flight begin more. If `drain` then comes again in the next
 * turn, it takes what has landed, and hands over what tasks begin that other callbacks woke. Until
 * then, threads need not tell the loop of what lands. */
static bool come_again(Pool *self, int woken)
{
    if (self->ended)
        return true;
    bool expected = woken && self->reads >= COLD_READS_FEW;
    if ((self->landed || expected) && !call_drain_soon(self))
        return false;
    self->expected = expected;
    if (expected)
        pool_expect(self->pool);
    return true;
}

static PyObject *pool_drain(Pool *self, PyObject *Py_UNUSED(unused))
{
    bool told = !self->expected;
    self->called = self->expected = false;
    if (!pool_is_usable(self))
        Py_RETURN_NONE;
    Py_INCREF((PyObject *)self); /* a read that has landed may hold the last reference */
    pool_flush(self);
    append_landed(self, pool_landed(self->pool, told));
    int woken = deliver(self);
    bool done = woken >= 0;
    if (!done) {
        call_drain_after_error(self);
    } else if (pool_is_usable(self)) {
        pool_flush(self); /* what the tasks have begun */
        done = come_again(self, woken) && tell_empty(self);
    }
    Py_DECREF((PyObject *)self);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

/* give_up(): the loop has ended, so that nothing calls `drain` and no task wakes any more. */
static PyObject *pool_give_up(Pool *self, PyObject *Py_UNUSED(unused))
{
    self->ended = true;
    return pool_drain(self, NULL);
}

static PyObject *pool_when_empty(Pool *self, PyObject *function)
{
    PyObject *before = self->when_empty;
    self->when_empty = Py_NewRef(function);
    Py_XDECREF(before);
    if (!tell_empty(self))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *pool_close_object(Pool *self, PyObject *Py_UNUSED(unused))
{
    struct pool *pool = self->pool;
    if (pool && in_flight(self) && self->forks == fork_generation)
        return PyErr_Format(PyExc_RuntimeError, "%zu jobs are in flight: wait for when_empty",
                            in_flight(self));
    self->pool = NULL;
    if (pool && self->forks != fork_generation) {
        pool_forget(pool);
    } else if (pool) {
        Py_BEGIN_ALLOW_THREADS
        pool_drop(pool);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *pool_fileno(Pool *self, PyObject *Py_UNUSED(unused))
{
    return PyLong_FromLong(self->pool ? pool_descriptor(self->pool) : -1);
}

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *make_waiter, *call_soon, *loop = Py_None;
    if (!PyArg_ParseTuple(args, "OO|O:Pool", &make_waiter, &call_soon, &loop))
        return NULL;
    Pool *self = (Pool *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->make_waiter = Py_NewRef(make_waiter);
    self->call_soon = Py_NewRef(call_soon);
    self->loop = loop == Py_None ? NULL : Py_NewRef(loop);
    self->forks = fork_generation;
    pool_list_make(&self->gathered);
    int error = pool_make(&self->pool);
    if (!error)
        return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return os_error(error);
}

/* queue(hub, limit, device): the place of a file of that hub and on that device. */
static PyObject *pool_queue(Pool *self, PyObject *args)
{
    unsigned long long hub, device;
    unsigned limit;
    if (!PyArg_ParseTuple(args, "KIK:queue", &hub, &limit, &device))
        return NULL;
    if (!pool_is_usable(self)) {
        PyErr_SetString(PyExc_ValueError, "the pool is closed, or another process's");
        return NULL;
    }
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    PoolQueue *queue = (PoolQueue *)PyType_GenericAlloc(state->pool_queue_type, 0);
    if (!queue)
        return NULL;
    if (pool_queue_make(self->pool, &queue->queue, hub, limit, device)) {
        queue->pool = (Pool *)Py_NewRef((PyObject *)self);
        return (PyObject *)queue;
    }
    Py_DECREF((PyObject *)queue);
    return PyErr_NoMemory();
}

static PyObject *get_in_flight(Pool *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(in_flight(self));
}

static PyObject *get_commits(Pool *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(self->commits);
}

static PyObject *get_threads(Pool *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(pool_is_usable(self) ? pool_threads(self->pool) : 0);
}

static int pool_traverse(Pool *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->make_waiter);
    Py_VISIT(self->call_soon);
    Py_VISIT(self->loop);
    Py_VISIT(self->when_empty);
    return 0;
}

static int pool_clear(Pool *self)
{
    Py_CLEAR(self->make_waiter);
    Py_CLEAR(self->call_soon);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->when_empty);
    return 0;
}

static void pool_dealloc(Pool *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(pool_close_object(self, NULL)); /* what is in flight holds references (pool_object.1) */
    pool_clear(self);
    object_free(self);
}

static PyMethodDef pool_methods[] = { /* documented in _native_pool.pyi */
    {"queue", (PyCFunction)pool_queue, METH_VARARGS, NULL},
    {"drain", (PyCFunction)pool_drain, METH_NOARGS, NULL},
    {"give_up", (PyCFunction)pool_give_up, METH_NOARGS, NULL},
    {"when_empty", (PyCFunction)pool_when_empty, METH_O, NULL},
    {"fileno", (PyCFunction)pool_fileno, METH_NOARGS, NULL},
    {"close", (PyCFunction)pool_close_object, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef pool_members[] = {
    {"deaf", T_BOOL, offsetof(Pool, deaf), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef pool_getset[] = {
    {"in_flight", (getter)get_in_flight, NULL, "How many jobs are in flight.", NULL},
    {"commits", (getter)get_commits, NULL, "How many of them store or flush.", NULL},
    {"threads", (getter)get_threads, NULL, "How many threads there are.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_new, pool_new},           {Py_tp_dealloc, pool_dealloc}, {Py_tp_traverse, pool_traverse},
    {Py_tp_clear, pool_clear},       {Py_tp_methods, pool_methods}, {Py_tp_getset, pool_getset},
    {Py_tp_members, pool_members},   {0, NULL},
};

PyType_Spec pool_spec = {
    .name = "aiommap._native.Pool",
    .basicsize = sizeof(Pool),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pool_slots,
};
