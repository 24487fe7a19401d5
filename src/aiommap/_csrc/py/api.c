#include "api.h"

#include <errno.h>

void object_free(void *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

PyObject *os_error(int number)
{
    errno = number;
    return PyErr_SetFromErrno(PyExc_OSError);
}
