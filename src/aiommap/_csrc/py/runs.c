#include "runs.h"

PyObject *list_of_runs(const struct run *runs, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *item =
            Py_BuildValue("(LL)", (long long)runs[i].start, (long long)runs[i].end);
        if (!item)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, i, item);
    }
    return list;
}

/* Make a tuple first: reading Python objects can run code, which may change the list. */
struct run *runs_of(PyObject *list, Py_ssize_t *count)
{
    PyObject *items = PyList_AsTuple(list);
    if (!items)
        return NULL;
    *count = PyTuple_Size(items);
    struct run *runs = PyMem_Calloc((size_t)*count + 1, sizeof *runs);
    if (!runs)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; runs && i < *count; i++) {
        long long start, end;
        if (!PyArg_ParseTuple(PyTuple_GetItem(items, i), "LL", &start, &end)) {
            PyMem_Free(runs);
            runs = NULL;
        } else {
            runs[i] = (struct run){start, end};
        }
    }
    Py_DECREF(items);
    return runs;
}
