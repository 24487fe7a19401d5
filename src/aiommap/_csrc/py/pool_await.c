/* pool_await.c: a PoolRead in the place of a future of asyncio; see pool_await.h. */
#include "pool_await.h"

#include "state.h"

static struct native_state *state_of(const PoolRead *self)
{
    return PyType_GetModuleState(Py_TYPE((PyObject *)self));
}

void pool_read_leave(PoolRead *self)
{
    self->left = true;
    Py_CLEAR(self->wake);
    Py_CLEAR(self->context);
    Py_CLEAR(self->outcome);
}

/* Have the loop wake the task in its next turn; false with an exception. */
static bool wake_soon(PoolRead *self, const Pool *pool, PyObject *wake, PyObject *context)
{
    PyObject *arguments = PyTuple_Pack(2, wake, (PyObject *)self);
    PyObject *keywords = Py_BuildValue("{sO}", "context", context);
    PyObject *handle = NULL;
    if (arguments && keywords)
        handle = PyObject_Call(pool->call_soon, arguments, keywords);
    Py_XDECREF(arguments);
    Py_XDECREF(keywords);
    Py_XDECREF(handle);
    return handle;
}

static bool wake_now(PoolRead *self, PyObject *wake, PyObject *context)
{
    PyObject *answer =
        PyObject_CallMethodObjArgs(context, state_of(self)->run, wake, (PyObject *)self, NULL);
    Py_XDECREF(answer);
    return answer;
}

/* Wake the task that waits, if there is one; false with an exception. */
static bool wake_task(PoolRead *self, const Pool *pool, bool now)
{
    PyObject *wake = self->wake, *context = self->context;
    if (!wake)
        return true;
    self->wake = self->context = NULL; /* pool_await.3 */
    bool woken = now ? wake_now(self, wake, context) : wake_soon(self, pool, wake, context);
    Py_DECREF(wake);
    Py_DECREF(context);
    return woken;
}

void pool_read_answer(PoolRead *self, const Pool *pool, PyObject *outcome, bool now)
{
    if (self->left)
        return;
    if (pool->ended) {
        pool_read_leave(self);
        return;
    }
    self->outcome = Py_NewRef(outcome);
    if (wake_task(self, pool, now) || now)
        return;
    if (PyErr_ExceptionMatches(PyExc_RuntimeError))
        PyErr_Clear(); /* the loop is closed, so nobody waits */
    else
        PyErr_WriteUnraisable(pool->call_soon);
}

/* Asked as a future is. */

PyObject *pool_read_await(PoolRead *self)
{
    if (self->waiter)
        return PyObject_CallMethod(self->waiter, "__await__", NULL);
    return Py_NewRef((PyObject *)self);
}

static PyObject *raise_cancelled(const PoolRead *self)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    PyObject *kind = asyncio ? PyObject_GetAttrString(asyncio, "CancelledError") : NULL;
    if (kind && self->message && self->message != Py_None)
        PyErr_SetObject(kind, self->message);
    else if (kind)
        PyErr_SetNone(kind);
    Py_XDECREF(kind);
    Py_XDECREF(asyncio);
    return NULL;
}

/* result(): a task that wakes asks whether it was cancelled; what was read it gets by `send`. */
static PyObject *pool_read_result(PoolRead *self, PyObject *Py_UNUSED(unused))
{
    if (self->cancelled)
        return raise_cancelled(self);
    return Py_NewRef(self->outcome ? self->outcome : Py_None);
}

PySendResult pool_read_send(PoolRead *self, PyObject *Py_UNUSED(value), PyObject **result)
{
    *result = self->outcome;
    self->outcome = NULL;
    if (*result)
        return PYGEN_RETURN;
    if (self->cancelled) {
        raise_cancelled(self);
        return PYGEN_ERROR;
    }
    if (!self->queue || self->blocking || self->wake) {
        PyErr_SetString(PyExc_RuntimeError, "this read is over, or a task waits for it already");
        return PYGEN_ERROR;
    }
    self->blocking = true;
    *result = Py_NewRef((PyObject *)self);
    return PYGEN_NEXT;
}

PyObject *pool_read_next(PoolRead *self)
{
    PyObject *result;
    if (pool_read_send(self, Py_None, &result) == PYGEN_RETURN) {
        PyErr_SetObject(PyExc_StopIteration, result);
        Py_CLEAR(result);
    }
    return result;
}

/* done(): for whoever looks at what a task waits for, as anyio does. */
static PyObject *pool_read_done(PoolRead *self, PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(!self->queue || self->left);
}

static PyObject *pool_read_get_loop(PoolRead *self, PyObject *Py_UNUSED(unused))
{
    return Py_NewRef(self->queue ? self->queue->pool->loop : Py_None);
}

/* add_done_callback(wake, *, context): the task passes what wakes it. */
static PyObject *pool_read_add_done_callback(PoolRead *self, PyObject *const *args,
                                             Py_ssize_t count, PyObject *names)
{
    if (count != 1 || !names || PyTuple_Size(names) != 1 ||
        PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "context"))
        return PyErr_Format(PyExc_TypeError, "add_done_callback() takes a function and a context");
    if (self->wake)
        return PyErr_Format(PyExc_RuntimeError, "a task waits for this read already");
    self->wake = Py_NewRef(args[0]);
    self->context = Py_NewRef(args[1]);
    Py_RETURN_NONE;
}

/* cancel(msg=None): as of a future. The coroutine that waits then withdraws the read. */
static PyObject *pool_read_cancel(PoolRead *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"msg", NULL};
    PyObject *message = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|O:cancel", names, &message))
        return NULL;
    if (!self->queue || self->left)
        Py_RETURN_FALSE; /* it has landed */
    self->cancelled = self->left = true;
    self->message = Py_NewRef(message);
    return wake_task(self, self->queue->pool, false) ? PyBool_FromLong(true) : NULL;
}

PyMethodDef pool_read_methods[] = { /* documented in _native_pool.pyi */
    {"withdraw", (PyCFunction)pool_read_withdraw, METH_NOARGS, NULL},
    {"result", (PyCFunction)pool_read_result, METH_NOARGS, NULL},
    {"done", (PyCFunction)pool_read_done, METH_NOARGS, NULL},
    {"get_loop", (PyCFunction)pool_read_get_loop, METH_NOARGS, NULL},
    {"add_done_callback", (PyCFunction)(void (*)(void))pool_read_add_done_callback,
     METH_FASTCALL | METH_KEYWORDS, NULL},
    {"cancel", (PyCFunction)(void (*)(void))pool_read_cancel, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};
