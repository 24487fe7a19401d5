/* buffer.c: what counts as bytes: which memory of callers a verb stores or fills.
 *
 * Any C-contiguous memory counts, whatever its elements are, except pointers to Python objects. The
 * inline way and the slow way of a verb both ask here, so that they accept the same.
 */
#include "buffer.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    Py_buffer memory; /* constant */
} Export;

/* Whether a format of PEP 3118 has objects; the names of fields stand between colons. */
static bool format_has_objects(const char *format)
{
    bool name = false;
    for (; format && *format; format++) {
        if (*format == ':')
            name = !name;
        else if (*format == 'O' && !name)
            return true;
    }
    return false;
}

/* The same for an exporter that cannot express its elements in such a format, as NumPy cannot for
 * dates and for strings of any width. */
static bool dtype_has_objects(PyObject *data)
{
    PyObject *dtype = PyObject_GetAttrString(data, "dtype");
    PyObject *answer = dtype ? PyObject_GetAttrString(dtype, "hasobject") : NULL;
    int has = answer ? PyObject_IsTrue(answer) : 0;
    PyErr_Clear();
    Py_XDECREF(answer);
    Py_XDECREF(dtype);
    return has > 0;
}

static bool refuse_type(PyObject *data, const char *name)
{
    const char *hint = PyUnicode_Check(data) ? ": encode it first" : "";
    PyObject *reprlib = PyImport_ImportModule("reprlib"), *shown = NULL;
    if (reprlib)
        shown = PyObject_CallMethod(reprlib, "repr", "(O)", data);
    if (shown)
        PyErr_Format(PyExc_TypeError, "%s is %S, not bytes or another buffer of them%s", name,
                     shown, hint);
    Py_XDECREF(shown);
    Py_XDECREF(reprlib);
    return false;
}

static bool exports(PyObject *data, int flags)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, flags)) {
        PyErr_Clear();
        return false;
    }
    PyBuffer_Release(&view);
    return true;
}

/* Raise the error that says why the memory cannot be exported. */
static bool refuse_memory(PyObject *data, const char *name, int flags)
{
    Py_buffer view;
    if (flags == PyBUF_WRITABLE && exports(data, PyBUF_SIMPLE)) {
        PyErr_Format(PyExc_TypeError,
                     "%s is a read-only buffer: pass a bytearray or the like to read into", name);
    } else if (exports(data, PyBUF_INDIRECT)) {
        PyErr_Format(PyExc_BufferError,
                     "%s is a buffer that is not C-contiguous: make a copy of it first", name);
    } else if (!PyObject_GetBuffer(data, &view, flags)) { /* else the owner's own error is set */
        PyBuffer_Release(&view);
        PyErr_Format(PyExc_BufferError,
                     "%s is a buffer that its owner refused to export a moment ago: try again", name);
    }
    return false;
}

bool buffer_take(PyObject *data, Py_buffer *view, bool writable)
{
    const char *name = writable ? "buffer" : "data";
    int flags = writable ? PyBUF_WRITABLE : PyBUF_SIMPLE;
    bool objects;
    if (!PyObject_CheckBuffer(data))
        return refuse_type(data, name);
    if (!PyObject_GetBuffer(data, view, flags | PyBUF_ND | PyBUF_FORMAT)) {
        objects = format_has_objects(view->format);
    } else {
        PyErr_Clear();
        if (PyObject_GetBuffer(data, view, flags)) {
            PyErr_Clear();
            return refuse_memory(data, name, flags);
        }
        objects = dtype_has_objects(data);
    }
    if (!objects)
        return true;
    PyBuffer_Release(view);
    PyErr_Format(PyExc_TypeError,
                 "%s holds Python objects, whose pointers are no data: convert them first", name);
    return false;
}

PyObject *buffer_export(PyTypeObject *export_type, PyObject *data, bool writable)
{
    if (!writable && PyBytes_CheckExact(data))
        return Py_NewRef(data);
    Export *export = (Export *)PyType_GenericAlloc(export_type, 0);
    if (!export)
        return NULL;
    PyObject *view = NULL;
    if (buffer_take(data, &export->memory, writable))
        view = PyMemoryView_FromObject((PyObject *)export);
    Py_DECREF(export);
    return view;
}

static int export_getbuffer(Export *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)self, self->memory.buf, self->memory.len,
                             self->memory.readonly, flags);
}

static int export_traverse(Export *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    /* The collector may clear a memoryview while we still hold a buffer of it, and our release of
     * that buffer then crashes CPython. As the collector does not see our reference, it waits. */
    if (self->memory.obj && !PyMemoryView_Check(self->memory.obj))
        Py_VISIT(self->memory.obj);
    return 0;
}

static void export_dealloc(Export *self)
{
    PyObject_GC_UnTrack(self);
    PyBuffer_Release(&self->memory); /* does nothing if nothing was taken */
    object_free(self);
}

static PyType_Slot export_slots[] = {
    {Py_tp_dealloc, export_dealloc},
    {Py_tp_traverse, export_traverse},
    {Py_bf_getbuffer, export_getbuffer},
    {0, NULL},
};

PyType_Spec export_spec = {
    .name = "aiommap._native.Export",
    .basicsize = sizeof(Export),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = export_slots,
};
