/* awaited.c: see awaited.h. */
#include "awaited.h"

#include <stddef.h>
#include <structmember.h>

#include "state.h"

void awaited_begin(Awaited *self, PyObject *loop, PyObject *call_soon)
{
    self->loop = Py_NewRef(loop);
    self->call_soon = Py_NewRef(call_soon);
}

static void forget_loop(Awaited *self)
{
    self->over = true;
    Py_CLEAR(self->loop);
    Py_CLEAR(self->call_soon);
}

void awaited_leave(Awaited *self)
{
    forget_loop(self);
    Py_CLEAR(self->wake);
    Py_CLEAR(self->context);
    Py_CLEAR(self->outcome);
}

void awaited_clear(Awaited *self)
{
    awaited_leave(self);
    Py_CLEAR(self->message);
}

int awaited_visit(Awaited *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->loop);
    Py_VISIT(self->call_soon);
    Py_VISIT(self->wake);
    Py_VISIT(self->context);
    Py_VISIT(self->outcome);
    Py_VISIT(self->message);
    return 0;
}

/* Have the loop wake the task in its next turn; false with an exception. */
static bool wake_soon(Awaited *self, PyObject *call_soon, PyObject *wake, PyObject *context)
{
    PyObject *arguments = PyTuple_Pack(2, wake, (PyObject *)self);
    PyObject *keywords = Py_BuildValue("{sO}", "context", context);
    PyObject *handle = NULL;
    if (arguments && keywords)
        handle = PyObject_Call(call_soon, arguments, keywords);
    Py_XDECREF(arguments);
    Py_XDECREF(keywords);
    Py_XDECREF(handle);
    return handle;
}

static bool wake_now(Awaited *self, PyObject *wake, PyObject *context)
{
    const struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    PyObject *answer =
        PyObject_CallMethodObjArgs(context, state->run, wake, (PyObject *)self, NULL);
    Py_XDECREF(answer);
    return answer;
}

/* Wake the task that waits, if there is one; false with an exception. */
static bool wake_task(Awaited *self, PyObject *call_soon, bool now)
{
    PyObject *wake = self->wake, *context = self->context;
    if (!wake)
        return true;
    self->wake = self->context = NULL; /* awaited.3 */
    bool woken = now ? wake_now(self, wake, context) : wake_soon(self, call_soon, wake, context);
    Py_DECREF(wake);
    Py_DECREF(context);
    return woken;
}

bool awaited_answer(Awaited *self, PyObject *outcome, bool raises, bool now)
{
    if (self->over)
        return true;
    PyObject *call_soon = Py_NewRef(self->call_soon);
    forget_loop(self);
    self->outcome = Py_NewRef(outcome);
    self->raises = raises;
    bool woken = wake_task(self, call_soon, now);
    if (!woken && !now) {
        if (PyErr_ExceptionMatches(PyExc_RuntimeError))
            PyErr_Clear(); /* the loop is closed, so nobody waits */
        else
            PyErr_WriteUnraisable(call_soon);
        woken = true;
    }
    Py_DECREF(call_soon);
    return woken;
}

/* Asked as a future is. */

static PyObject *raise_cancelled(const Awaited *self)
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

/* result(): a task that wakes asks whether it was cancelled; the outcome it gets by `send`. */
static PyObject *awaited_result(Awaited *self, PyObject *Py_UNUSED(unused))
{
    if (self->cancelled)
        return raise_cancelled(self);
    return Py_NewRef(self->outcome ? self->outcome : Py_None);
}

static PySendResult take_outcome(Awaited *self, PyObject **result)
{
    PyObject *outcome = self->outcome;
    self->outcome = NULL; /* the traceback of an exception refers to whoever awaits this */
    *result = outcome;
    if (!self->raises)
        return PYGEN_RETURN;
    *result = NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(outcome), outcome);
    Py_DECREF(outcome);
    return PYGEN_ERROR;
}

static PySendResult awaited_send(Awaited *self, PyObject *Py_UNUSED(value), PyObject **result)
{
    *result = NULL;
    if (self->outcome)
        return take_outcome(self, result);
    if (self->cancelled) {
        raise_cancelled(self);
        return PYGEN_ERROR;
    }
    if (self->over || self->blocking || self->wake) {
        PyErr_SetString(PyExc_RuntimeError, "this is over, or a task waits for it already");
        return PYGEN_ERROR;
    }
    self->blocking = true;
    *result = Py_NewRef((PyObject *)self);
    return PYGEN_NEXT;
}

static PyObject *awaited_next(Awaited *self)
{
    PyObject *result;
    if (awaited_send(self, Py_None, &result) == PYGEN_RETURN) {
        PyErr_SetObject(PyExc_StopIteration, result);
        Py_CLEAR(result);
    }
    return result;
}

/* done(): for whoever looks at what a task waits for, as anyio does. */
static PyObject *awaited_done(Awaited *self, PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(self->over);
}

static PyObject *awaited_get_loop(Awaited *self, PyObject *Py_UNUSED(unused))
{
    return Py_NewRef(self->loop ? self->loop : Py_None);
}

/* add_done_callback(wake, *, context): the task passes what wakes it. */
static PyObject *awaited_add_done_callback(Awaited *self, PyObject *const *args, Py_ssize_t count,
                                           PyObject *names)
{
    if (count != 1 || !names || PyTuple_Size(names) != 1 ||
        PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "context"))
        return PyErr_Format(PyExc_TypeError, "add_done_callback() takes a function and a context");
    if (self->wake)
        return PyErr_Format(PyExc_RuntimeError, "a task waits for this already");
    self->wake = Py_NewRef(args[0]);
    self->context = Py_NewRef(args[1]);
    Py_RETURN_NONE;
}

/* cancel(msg=None): as of a future. The coroutine that waits then withdraws what it began. */
static PyObject *awaited_cancel(Awaited *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"msg", NULL};
    PyObject *message = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|O:cancel", names, &message))
        return NULL;
    if (self->over)
        Py_RETURN_FALSE;
    PyObject *call_soon = Py_NewRef(self->call_soon);
    forget_loop(self);
    self->cancelled = true;
    self->message = Py_NewRef(message);
    bool woken = wake_task(self, call_soon, false);
    Py_DECREF(call_soon);
    return woken ? PyBool_FromLong(true) : NULL;
}

static PyMethodDef awaited_methods[] = {
    {"result", (PyCFunction)awaited_result, METH_NOARGS, NULL},
    {"done", (PyCFunction)awaited_done, METH_NOARGS, NULL},
    {"get_loop", (PyCFunction)awaited_get_loop, METH_NOARGS, NULL},
    {"add_done_callback", (PyCFunction)(void (*)(void))awaited_add_done_callback,
     METH_FASTCALL | METH_KEYWORDS, NULL},
    {"cancel", (PyCFunction)(void (*)(void))awaited_cancel, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef awaited_members[] = {
    {"_asyncio_future_blocking", T_BOOL, offsetof(Awaited, blocking), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot awaited_slots[] = {
    {Py_tp_methods, awaited_methods},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, awaited_next},
    {Py_tp_members, awaited_members},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, awaited_send},
    {0, NULL},
};

PyType_Spec awaited_spec = {
    .name = "aiommap._native.Awaited",
    .basicsize = sizeof(Awaited),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = awaited_slots,
};
