#include "search.h"

#include "../sys/search.h"

/* Searching more takes longer than letting the GIL go. */
enum { SHORT = 64 << 10 };

static ssize_t search(const Py_buffer *in, const Py_buffer *needle, bool last)
{
    if (last)
        return search_last(in->buf, (size_t)in->len, needle->buf, (size_t)needle->len);
    return search_first(in->buf, (size_t)in->len, needle->buf, (size_t)needle->len);
}

PyObject *find_bytes(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer in, needle;
    int last;
    ssize_t found = -1;
    if (!PyArg_ParseTuple(args, "y*y*p:find_bytes", &in, &needle, &last))
        return NULL;
    if (needle.len && in.len <= SHORT) {
        found = search(&in, &needle, last);
    } else if (needle.len) {
        /* SAFETY: both are exported to us until they are released below. */
        Py_BEGIN_ALLOW_THREADS
        found = search(&in, &needle, last);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&needle);
    return found == -2 ? PyErr_NoMemory() : PyLong_FromSsize_t(found);
}
