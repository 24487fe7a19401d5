/* log_next.c: see log_next.h. */
#include "log_next.h"

typedef struct {
    PyObject_HEAD
    PyObject *cursor;    /* GIL; NULL once it is over */
    PyObject *coroutine; /* GIL; NULL unless Python had to look */
    const struct log_grants *grants; /* constant */
} LogNext;

PyObject *log_next_make(PyTypeObject *type, PyObject **spare, PyObject *cursor,
                        const struct log_grants *grants)
{
    LogNext *self = (LogNext *)*spare;
    if (self && Py_REFCNT(*spare) == 1)
        *spare = NULL; /* or the two would keep each other alive */
    else
        self = (LogNext *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->cursor = Py_NewRef(cursor);
    self->grants = grants;
    return (PyObject *)self;
}

/* Only one task may await it: two would take each other's wake-ups. */
static PyObject *next_await(LogNext *self)
{
    if (self->coroutine) {
        PyErr_SetString(PyExc_RuntimeError, "this next record is awaited already: ask for another");
        return NULL;
    }
    return Py_NewRef((PyObject *)self);
}

/* It has given its record, or has failed. */
static void end(LogNext *self)
{
    PyObject *cursor = self->cursor;
    Py_CLEAR(self->coroutine);
    self->cursor = NULL;
    if (cursor)
        self->grants->keep(cursor, (PyObject *)self);
    Py_XDECREF(cursor);
}

/* A loop that ends leaves a cycle: coroutine, LogNext, coroutine, what that waits for, task. */
static int next_traverse(LogNext *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->cursor);
    Py_VISIT(self->coroutine);
    return 0;
}

static int next_clear(LogNext *self)
{
    Py_CLEAR(self->cursor);
    Py_CLEAR(self->coroutine);
    return 0;
}

static void next_dealloc(LogNext *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->cursor);
    Py_XDECREF(self->coroutine);
    object_free(self);
}

/* Make the coroutine unless there is one; false with an exception. */
static bool begin_coroutine(LogNext *self)
{
    if (self->coroutine)
        return true;
    if (!self->cursor)
        PyErr_SetString(PyExc_RuntimeError, "this next record was awaited before: ask for another");
    else
        self->coroutine = PyObject_CallMethod(self->cursor, "_advance", NULL);
    return self->coroutine;
}

static PySendResult next_send(LogNext *self, PyObject *value, PyObject **result)
{
    *result = NULL;
    if (self->cursor && !self->coroutine) {
        *result = self->grants->take(self->cursor);
        if (*result || PyErr_Occurred()) {
            end(self);
            return *result ? PYGEN_RETURN : PYGEN_ERROR;
        }
    }
    if (!begin_coroutine(self))
        return PYGEN_ERROR;
    PyObject *coroutine = Py_NewRef(self->coroutine);
    PySendResult how = PyIter_Send(coroutine, value, result);
    Py_DECREF(coroutine);
    if (how != PYGEN_NEXT)
        end(self);
    return how;
}

/* The result as the caller of a coroutine gets it. */
static PyObject *as_step(PySendResult how, PyObject *result)
{
    if (how == PYGEN_RETURN) {
        PyErr_SetObject(PyExc_StopIteration, result);
        Py_CLEAR(result);
    }
    return result;
}

static PyObject *next_step(LogNext *self)
{
    PyObject *result;
    PySendResult how = next_send(self, Py_None, &result);
    return as_step(how, result);
}

static PyObject *call_send(LogNext *self, PyObject *value)
{
    PyObject *result;
    PySendResult how = next_send(self, value, &result);
    return as_step(how, result);
}

static PyObject *call_throw(LogNext *self, PyObject *args)
{
    PyObject *throw = begin_coroutine(self) ? PyObject_GetAttrString(self->coroutine, "throw") : NULL;
    PyObject *result = throw ? PyObject_CallObject(throw, args) : NULL;
    Py_XDECREF(throw);
    if (!result)
        end(self);
    return result;
}

static PyObject *call_close(LogNext *self, PyObject *Py_UNUSED(unused))
{
    PyObject *coroutine = Py_XNewRef(self->coroutine);
    PyObject *result = coroutine ? PyObject_CallMethod(coroutine, "close", NULL) : Py_NewRef(Py_None);
    Py_XDECREF(coroutine);
    end(self);
    return result;
}

/* With these it is a coroutine as collections.abc.Coroutine has it, which create_task takes. */
static PyMethodDef next_methods[] = {
    {"send", (PyCFunction)call_send, METH_O, NULL},
    {"throw", (PyCFunction)call_throw, METH_VARARGS, NULL},
    {"close", (PyCFunction)call_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot next_slots[] = {
    {Py_tp_dealloc, next_dealloc},
    {Py_tp_traverse, next_traverse},
    {Py_tp_clear, next_clear},
    {Py_tp_methods, next_methods},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, next_step},
    {Py_am_await, next_await},
    {Py_am_send, next_send},
    {0, NULL},
};

PyType_Spec log_next_spec = {
    .name = "aiommap._native.LogNext",
    .basicsize = sizeof(LogNext),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = next_slots,
};
