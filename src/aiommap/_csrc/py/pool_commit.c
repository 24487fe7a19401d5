#include "pool_commit.h"

#include <pthread.h>
#include <stddef.h>

typedef struct {
    PyObject_HEAD

    /* Constant. */
    const struct commit_kind *kind;
    void *call; /* its own, see the kind; NULL once released; by one thread at a time */

    struct pool_job job; /* by one thread at a time; written by landing.c */
    pthread_mutex_t mutex;
    pthread_cond_t ended;
    bool has_run; /* with the mutex */

    /* GIL; written by this file. */
    PoolQueue *queue;  /* strong; NULL once it has landed */
    PyObject *tell;    /* strong; likewise */
    PyObject *outcome; /* strong; NULL until somebody asked */
} PoolCommit;

static PoolCommit *of(struct pool_job *job)
{
    return (PoolCommit *)((char *)job - offsetof(PoolCommit, job));
}

/* In a thread of the pool. The job is the pool's until it has landed, whoever waits for `ended`. */
static void run(struct pool_job *job)
{
    PoolCommit *self = of(job);
    self->kind->run(self->call);
    pthread_mutex_lock(&self->mutex);
    self->has_run = true;
    pthread_cond_broadcast(&self->ended);
    pthread_mutex_unlock(&self->mutex);
}

static void release_call(PoolCommit *self)
{
    void *call = self->call;
    self->call = NULL;
    if (call)
        self->kind->release(call);
    PyMem_Free(call);
}

/* Whatever is no Exception ends the program, and is left for the loop to raise. */
static void report(PyObject *function)
{
    if (PyErr_ExceptionMatches(PyExc_Exception))
        PyErr_WriteUnraisable(function);
}

static bool landed(struct pool_job *job)
{
    PoolCommit *self = of(job);
    PoolQueue *queue = self->queue;
    PyObject *tell = self->tell;
    self->queue = NULL;
    self->tell = NULL;
    queue->pool->commits--;
    PyObject *then = PyObject_CallFunctionObjArgs(tell, (PyObject *)self, NULL);
    PyObject *answer = then && !Py_IsNone(then) ? PyObject_CallFunctionObjArgs(then, NULL) : NULL;
    if (PyErr_Occurred())
        report(then ? then : tell);
    Py_XDECREF(answer);
    Py_XDECREF(then);
    Py_DECREF(tell);
    Py_DECREF((PyObject *)queue);
    Py_DECREF((PyObject *)self); /* pool_object.1 */
    return true;
}

PyObject *pool_commit_begin(const struct native_state *state, PyObject *queue,
                            const struct commit_kind *kind, void *call, PyObject *tell)
{
    if (!PyObject_TypeCheck(queue, state->pool_queue_type))
        return PyErr_Format(PyExc_TypeError, "%R is no PoolQueue", queue);
    PoolQueue *place = (PoolQueue *)queue;
    Pool *pool = place->pool;
    if (pool->deaf || !pool_is_usable(pool))
        Py_RETURN_NONE;
    PoolCommit *self = (PoolCommit *)PyType_GenericAlloc(state->pool_commit_type, 0);
    if (!self)
        return NULL;
    pthread_mutex_init(&self->mutex, NULL);
    pthread_cond_init(&self->ended, NULL);
    self->kind = kind;
    self->call = call;
    self->job.queue = &place->queue;
    self->job.run = run;
    self->job.landed = landed;
    if (!pool_submit_one(pool->pool, &self->job)) {
        self->call = NULL;
        Py_DECREF((PyObject *)self);
        Py_RETURN_NONE;
    }
    pool->commits++;
    self->queue = (PoolQueue *)Py_NewRef(queue);
    self->tell = Py_NewRef(tell);
    return Py_NewRef((PyObject *)self); /* pool_object.1 */
}

/* wait(): wait until the call was made; for threads that may wait. */
static PyObject *commit_wait(PoolCommit *self, PyObject *Py_UNUSED(unused))
{
    Py_INCREF((PyObject *)self);
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&self->mutex);
    while (!self->has_run)
        pthread_cond_wait(&self->ended, &self->mutex);
    pthread_mutex_unlock(&self->mutex);
    Py_END_ALLOW_THREADS
    Py_DECREF((PyObject *)self);
    Py_RETURN_NONE;
}

static bool has_run(PoolCommit *self)
{
    pthread_mutex_lock(&self->mutex);
    bool answer = self->has_run;
    pthread_mutex_unlock(&self->mutex);
    if (!answer)
        PyErr_SetString(PyExc_RuntimeError, "the call is still under way: wait()");
    return answer;
}

static PyObject *commit_outcome(PoolCommit *self, PyObject *Py_UNUSED(unused))
{
    if (self->call && has_run(self)) {
        self->outcome = self->kind->end(self->call);
        release_call(self);
    } else if (!self->outcome && !self->call) {
        PyErr_SetString(PyExc_RuntimeError,
                        "the outcome was asked for before, and counting it failed");
    }
    return Py_XNewRef(self->outcome);
}

static PyObject *get_succeeded(PoolCommit *self, void *Py_UNUSED(closure))
{
    if (!self->call)
        Py_RETURN_FALSE;
    return has_run(self) ? PyBool_FromLong(self->kind->succeeded(self->call)) : NULL;
}

static void commit_dealloc(PoolCommit *self)
{
    release_call(self);
    Py_XDECREF(self->outcome);
    pthread_cond_destroy(&self->ended);
    pthread_mutex_destroy(&self->mutex);
    object_free(self);
}

static PyMethodDef commit_methods[] = { /* documented in _native_pool.pyi */
    {"wait", (PyCFunction)commit_wait, METH_NOARGS, NULL},
    {"outcome", (PyCFunction)commit_outcome, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef commit_getset[] = {
    {"succeeded", (getter)get_succeeded, NULL, "Whether nothing unusual is left to do.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot commit_slots[] = {
    {Py_tp_dealloc, commit_dealloc},
    {Py_tp_methods, commit_methods},
    {Py_tp_getset, commit_getset},
    {0, NULL},
};

PyType_Spec pool_commit_spec = {
    .name = "aiommap._native.PoolCommit",
    .basicsize = sizeof(PoolCommit),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = commit_slots,
};
