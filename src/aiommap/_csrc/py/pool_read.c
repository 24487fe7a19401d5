/* pool_read.c: the type PoolRead, from its beginning until its last job has landed. */
#include "pool_object.h"

#include <errno.h>

#include "inline.h"
#include "state.h"

PoolRead *pool_read_make(PoolQueue *queue, size_t count, PyObject *tell)
{
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)queue));
    PoolRead *self = (PoolRead *)PyType_GenericAlloc(state->pool_read_type, 0);
    if (!self)
        return NULL;
    self->count = self->missing = count;
    self->reads = count == 1 ? &self->one : PyMem_Calloc(count, sizeof *self->reads);
    self->queue = (PoolQueue *)Py_NewRef((PyObject *)queue);
    bool made = self->reads;
    if (!made)
        PyErr_NoMemory();
    else if (tell)
        self->tell = Py_NewRef(tell);
    else if (queue->pool->loop)
        awaited_begin(&self->awaited, queue->pool->loop, queue->pool->call_soon);
    else
        made = (self->waiter = PyObject_CallFunctionObjArgs(queue->pool->make_waiter, NULL));
    if (made)
        return self;
    Py_DECREF((PyObject *)self);
    return NULL;
}

void pool_read_pin(PoolRead *self, Mapping *mapping)
{
    self->mapping = (Mapping *)Py_NewRef((PyObject *)mapping);
    pin_begin(&self->pin, mapping);
}

static void close_descriptor(PoolQueue *queue, int fd)
{
    PoolRead *closing = NULL;
    if (pool_is_usable(queue->pool))
        closing = pool_read_make(queue, 1, Py_None);
    if (!closing) {
        PyErr_Clear();
        descriptor_close(fd);
        return;
    }
    closing->one.call.fd = fd;
    closing->one.call.job.run = pool_close;
    if (!pool_read_begin(closing)) {
        PyErr_Clear();
        descriptor_close(fd);
    }
    Py_DECREF((PyObject *)closing);
}

/* Give up what it holds of the file and of the caller's memory. */
static void let_go(PoolRead *self)
{
    Mapping *mapping = self->mapping;
    PoolQueue *queue = self->queue;
    self->mapping = NULL;
    self->queue = NULL;
    if (mapping) {
        for (int fd; (fd = pin_take_descriptor(&self->pin)) >= 0;)
            close_descriptor(queue, fd); /* it may wait, and this is the loop thread (I1) */
        pin_end(&self->pin);
        Py_DECREF((PyObject *)mapping);
    }
    if (self->view.obj)
        PyBuffer_Release(&self->view);
    Py_XDECREF((PyObject *)queue);
}

/* Make the memory that jobs fill, unless it is the caller's. */
static bool make_memory(PoolRead *self)
{
    for (size_t i = 0; i < self->count; i++) {
        struct pool_read *call = &self->reads[i].call;
        if (call->job.run != pool_read_own && call->job.run != pool_read_plain)
            continue;
        if (self->view.obj) {
            call->to = self->view.buf; /* SAFETY: exported to us until it has landed */
            continue;
        }
        PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)call->length);
        if (!bytes)
            return false;
        self->reads[i].bytes = bytes;
        /* SAFETY: nobody else has the new object before it has landed, so a thread can fill it. */
        call->to = PyBytes_AsString(bytes);
    }
    return true;
}

/* Make the device begin while a thread wakes up (pool_object.h), as an inline read would have
 * done. */
static bool begin_if_few(PoolRead *self)
{
    struct pool_read *call = &self->one.call;
    if (!self->untried || self->queue->pool->reads >= COLD_READS_FEW || !self->mapping->nowait ||
        call->length > GIL_COPY_LIMIT_BYTES)
        return false;
    pool_read_start(&call->job);
    return true;
}

/* Let the threads have the device begin these reads, as nobody has yet. A thread may then take two
 * reads, and the second waits for the first. So this is for local files only: a server may hold up
 * the first one for long. */
static void let_start(PoolRead *self)
{
    const Mapping *mapping = self->mapping;
    for (size_t i = 0; mapping && mapping->nowait && mapping->local && i < self->count; i++) {
        struct pool_read *call = &self->reads[i].call;
        if (call->job.run == pool_read_own && call->length <= GIL_COPY_LIMIT_BYTES)
            call->job.start = pool_read_start;
    }
}

static bool start(PoolRead *self)
{
    if (!make_memory(self))
        return false;
    if (!begin_if_few(self))
        let_start(self);
    if (!pool_run(self->queue->pool, self->count, self->reads))
        return false;
    self->queue->in_flight += self->count;
    Py_INCREF((PyObject *)self); /* pool_object.1 */
    return true;
}

static void wait_for_others(PoolRead *self)
{
    PoolQueue *queue = self->queue;
    self->waits = true;
    if (queue->waiting)
        queue->last_waiting->after = self;
    else
        queue->waiting = self;
    queue->last_waiting = self;
    Py_INCREF((PyObject *)self);
}

bool pool_read_begin(PoolRead *self)
{
    for (size_t i = 0; i < self->count; i++) {
        self->reads[i].call.owner = self;
        self->reads[i].call.job.landed = pool_read_landed;
        self->reads[i].call.job.queue = &self->queue->queue;
    }
    if (self->queue->in_flight < READS_MOST)
        return start(self);
    wait_for_others(self);
    return true;
}

/* Without memory for a number, None will do: a worker thread reads again whatever is not bytes. */
static PyObject *number(ssize_t value)
{
    PyObject *result = PyLong_FromSsize_t(value);
    if (result)
        return result;
    PyErr_Clear();
    return Py_NewRef(Py_None);
}

/* The bytes if all of them are there, else what the call returned. */
static PyObject *result_of(struct waiting_read *read)
{
    PyObject *bytes = read->bytes;
    read->bytes = NULL;
    if (bytes && read->call.got == (ssize_t)read->call.length)
        return bytes;
    Py_XDECREF(bytes);
    return number(read->call.got);
}

/* Whether a waiter is done. Keeps the exception that is pending. */
static bool is_done(PyObject *waiter, PyObject *name)
{
    PyObject *kind, *error, *traceback;
    PyErr_Fetch(&kind, &error, &traceback);
    PyObject *answer = PyObject_CallMethodObjArgs(waiter, name, NULL);
    bool done = answer && PyObject_IsTrue(answer) == 1;
    Py_XDECREF(answer);
    PyErr_Restore(kind, error, traceback);
    return done;
}

/* A waiter that is done already was cancelled, and its task has not run since: it refuses a result.
 * A waiter whose loop has ended raises RuntimeError. In both cases nobody waits for the result. */
static void tell_other(PoolRead *self, PyObject *result)
{
    const struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    PyObject *function = self->tell, *waiter = self->waiter, *answer = NULL;
    self->tell = self->waiter = NULL;
    if (function && function != Py_None)
        answer = PyObject_CallFunctionObjArgs(function, result, NULL);
    else if (waiter)
        answer = PyObject_CallMethodObjArgs(waiter, state->set_result, result, NULL);
    if (!answer && PyErr_Occurred() &&
        (PyErr_ExceptionMatches(PyExc_RuntimeError) || (waiter && is_done(waiter, state->done))))
        PyErr_Clear();
    else if (!answer && PyErr_Occurred())
        PyErr_WriteUnraisable(function ? function : waiter);
    Py_XDECREF(answer);
    Py_XDECREF(function);
    Py_XDECREF(waiter);
}

/* Give up what the read holds, and tell its result; takes the reference to the result over. With
 * `now`, see awaited_answer. */
static void end(PoolRead *self, PyObject *result, bool now)
{
    Pool *pool = (Pool *)Py_NewRef((PyObject *)self->queue->pool);
    let_go(self);
    if (self->tell || self->waiter)
        tell_other(self, result);
    else if (pool->ended)
        awaited_leave(&self->awaited);
    else
        awaited_answer(&self->awaited, result, false, now);
    Py_DECREF(result);
    Py_DECREF((PyObject *)pool);
}

/* The result of a read that could not begin. */
static PyObject *nothing_read(PoolRead *self)
{
    for (size_t i = 0; self->results && i < self->count; i++)
        PyList_SetItem(self->results, (Py_ssize_t)i, number(0));
    return self->results ? Py_NewRef(self->results) : number(0);
}

/* Begin reads that wait, as far as there is room. */
static void go_on(PoolQueue *queue)
{
    while (queue->waiting && queue->in_flight < READS_MOST) {
        PoolRead *next = queue->waiting;
        queue->waiting = next->after;
        next->after = NULL;
        next->waits = false;
        if (next->queue && !start(next)) { /* else it was withdrawn */
            PyErr_Clear(); /* no memory; or the loop is closed */
            end(next, nothing_read(next), false);
        }
        Py_DECREF((PyObject *)next);
    }
}

/* Note that a job has landed; true if a task was woken. With `now`, see awaited_answer. */
static bool land(struct pool_job *job, bool now)
{
    struct waiting_read *read = (struct waiting_read *)job;
    PoolRead *self = read->call.owner;
    PoolQueue *queue = (PoolQueue *)Py_NewRef((PyObject *)self->queue);
    PyObject *result = result_of(read), *kind, *error, *traceback;
    bool last = --self->missing == 0;
    pool_note_read(queue->pool);
    queue->in_flight--;
    if (self->results) {
        PyList_SetItem(self->results, read - self->reads, result);
        result = self->results;
    }
    if (last)
        end(self, self->results ? Py_NewRef(result) : result, now);
    PyErr_Fetch(&kind, &error, &traceback);
    if (last)
        Py_DECREF((PyObject *)self);
    if (pool_is_usable(queue->pool))
        go_on(queue);
    Py_DECREF((PyObject *)queue);
    PyErr_Restore(kind, error, traceback);
    return last;
}

bool pool_read_landed(struct pool_job *job)
{
    const PoolRead *self = ((struct waiting_read *)job)->call.owner;
    return land(job, self->queue->pool->wakes_now);
}

/* Nobody waits any more: a job that no thread has begun never runs. Returns whether none of them
 * runs now. */
static PyObject *pool_read_withdraw(PoolRead *self, PyObject *Py_UNUSED(unused))
{
    PoolQueue *queue = self->queue;
    awaited_leave(&self->awaited);
    if (!queue || !pool_is_usable(queue->pool))
        return PyBool_FromLong(!queue);
    Py_INCREF((PyObject *)self);
    Py_CLEAR(self->waiter);
    if (self->waits)
        end(self, number(-ECANCELED), false);
    else
        pool_flush(queue->pool);
    for (size_t i = 0; i < self->count && self->queue; i++) {
        struct pool_read *call = &self->reads[i].call;
        if (!pool_withdraw(queue->pool->pool, &call->job))
            continue;
        call->got = -ECANCELED;
        land(&call->job, false);
    }
    bool over = !self->queue;
    Py_DECREF((PyObject *)self);
    return PyBool_FromLong(over);
}

static PyObject *get_waiter(PoolRead *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->waiter ? self->waiter : Py_None);
}

static void pool_read_dealloc(PoolRead *self)
{
    if (self->queue)
        let_go(self); /* it was never begun */
    for (size_t i = 0; self->reads && i < self->count; i++)
        Py_XDECREF(self->reads[i].bytes);
    if (self->reads != &self->one)
        PyMem_Free(self->reads);
    Py_XDECREF(self->waiter);
    Py_XDECREF(self->tell);
    Py_XDECREF(self->results);
    awaited_clear(&self->awaited);
    object_free(self);
}

static PyObject *pool_read_await(PoolRead *self)
{
    if (self->waiter)
        return PyObject_CallMethod(self->waiter, "__await__", NULL);
    return Py_NewRef((PyObject *)self);
}

static PyMethodDef pool_read_methods[] = { /* documented in _native_pool.pyi */
    {"withdraw", (PyCFunction)pool_read_withdraw, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pool_read_getset[] = {
    {"waiter", (getter)get_waiter, NULL, "What is waited for.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pool_read_slots[] = {
    {Py_tp_dealloc, pool_read_dealloc},
    {Py_tp_methods, pool_read_methods},
    {Py_tp_getset, pool_read_getset},
    {Py_am_await, pool_read_await},
    {0, NULL},
};

PyType_Spec pool_read_spec = {
    .name = "aiommap._native.PoolRead",
    .basicsize = sizeof(PoolRead),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = pool_read_slots,
};
