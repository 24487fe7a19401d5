/* append.c: stores behind the end of a file, which make it longer.
 *
 * Two steps. The first writes; verbs cannot address the bytes yet, as if somebody else had appended
 * them. The second counts them, in a moment with the GIL, and lets verbs address them. This is no
 * change, because it only adds bytes (mapping.h).
 */
#include "append.h"

#include <errno.h>

#include "accounting.h"
#include "pin.h"
#include "receipt.h"
#include "resize.h"

#include "../sys/append.h"
#include "../sys/clock.h"

struct pieces { /* the caller's own */
    Py_buffer *views;
    struct iovec *data; /* with room for one more */
    int count;
};

static void pieces_release(struct pieces *pieces)
{
    for (int i = 0; i < pieces->count; i++)
        PyBuffer_Release(&pieces->views[i]);
    PyMem_Free(pieces->views);
    PyMem_Free(pieces->data);
}

/* Export the buffers of a list; false with an exception. The caller calls pieces_release in either
 * case. */
static bool pieces_load(struct pieces *pieces, PyObject *list)
{
    *pieces = (struct pieces){0};
    PyObject *items = PyList_CheckExact(list) ? PyList_AsTuple(list) : NULL;
    Py_ssize_t count = items ? PyTuple_Size(items) : -1;
    if (count < 0 || count > APPEND_PIECES) {
        Py_XDECREF(items);
        PyErr_Format(PyExc_TypeError, "append needs a list of %d buffers at most", APPEND_PIECES);
        return false;
    }
    pieces->views = PyMem_Calloc((size_t)count + 1, sizeof *pieces->views);
    pieces->data = PyMem_Calloc((size_t)count + 1, sizeof *pieces->data);
    bool loaded = pieces->views && pieces->data;
    if (!loaded)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; loaded && i < count; i++) {
        Py_buffer *view = &pieces->views[i];
        loaded = !PyObject_GetBuffer(PyTuple_GetItem(items, i), view, PyBUF_SIMPLE);
        if (loaded)
            pieces->data[pieces->count++] = (struct iovec){view->buf, (size_t)view->len};
    }
    Py_DECREF(items);
    return loaded;
}

/* Without the GIL. */
static void put(const struct pin *pin, struct growth *growth, int shared_fd, struct pieces *pieces,
                int64_t size, bool whole_pages, struct appended *done)
{
    if (shared_fd < 0) {
        growth_append(growth, pin->fd, pieces->data, pieces->count, size, whole_pages, done);
        return;
    }
    append_shared(shared_fd, pieces->data, pieces->count, done);
    growth_follow(growth, done->start + (int64_t)done->put);
}

PyObject *mapping_append(Mapping *self, PyObject *list)
{
    struct pieces pieces;
    struct appended done = {0};
    bool loaded = pieces_load(&pieces, list) && mapping_check(self); /* an export may close it */
    if (loaded) {
        struct pin pin;
        int64_t size = mapping_size(self);
        bool whole_pages = self->growable_leases > 0;
        int shared_fd = self->append_fd;
        /* SAFETY: the buffers are exported to us until they are released below. */
        WITHOUT_GIL(pin, self, put(&pin, &self->growth, shared_fd, &pieces, size, whole_pages,
                                   &done););
    }
    pieces_release(&pieces);
    if (!loaded)
        return NULL;
    return Py_BuildValue("(Lni)", (long long)done.start, (Py_ssize_t)done.put, done.error);
}

/* Account for one piece; returns its receipt. */
static PyObject *count_one(Mapping *self, int64_t offset, int64_t length, int64_t now)
{
    if (!account_store(self, offset, (size_t)length, PRESENCE_UNKNOWN, now))
        return PyErr_NoMemory();
    return receipt_make(self, offset, length, length ? account_write(self) : self->sequence);
}

PyObject *mapping_count_appended(Mapping *self, PyObject *args)
{
    long long start, end;
    PyObject *lengths;
    if (!PyArg_ParseTuple(args, "LLO!:count_appended", &start, &end, &PyList_Type, &lengths) ||
        !mapping_check(self))
        return NULL;
    if (!mapping_reach(self, end))
        Py_RETURN_NONE;
    Py_ssize_t count = PyList_Size(lengths);
    PyObject *receipts = PyList_New(count);
    int64_t now = monotonic_clock(), at = start;
    for (Py_ssize_t i = 0; receipts && i < count; i++) {
        long long length = PyLong_AsLongLong(PyList_GetItem(lengths, i));
        bool inside = !PyErr_Occurred() && mapping_check_range(self, at, length, end);
        PyObject *receipt = inside ? count_one(self, at, length, now) : NULL;
        at += length;
        if (!receipt)
            Py_CLEAR(receipts);
        else
            PyList_SetItem(receipts, i, receipt);
    }
    return receipts;
}

PyObject *append_zeros_to_file(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd, sparse, error;
    long long length;
    if (!PyArg_ParseTuple(args, "iLp:append_zeros_to", &fd, &length, &sparse))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = append_zeros_to(fd, length, sparse);
    Py_END_ALLOW_THREADS
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}
