/* pool_queue.c: the type PoolQueue: it begins reads of one file.
 *
 * Each verb returns None where the pool cannot do it, and a worker thread has to.
 */
#include "pool_object.h"

#include "buffer.h"
#include "inline.h"
#include "state.h"

static struct native_state *state_of(const PoolQueue *self)
{
    return PyType_GetModuleState(Py_TYPE((PyObject *)self));
}

static Mapping *mapping_of(const PoolQueue *self, PyObject *object)
{
    PyTypeObject *type = state_of(self)->mapping_type;
    if (PyObject_TypeCheck(object, type))
        return (Mapping *)object;
    PyErr_Format(PyExc_TypeError, "%R is no Mapping", object);
    return NULL;
}

/* Whether the descriptor has the bytes of a range, and this is the loop thread of the file: the
 * range is within the file, and has no private page. */
static bool is_readable(const PoolQueue *self, const Mapping *mapping, int64_t offset, int64_t length)
{
    size_t first, end;
    if (!pool_is_usable(self->pool) || !mapping_is_usable(mapping) || !is_loop_thread(mapping) ||
        !range_is_valid(offset, length, mapping->reach))
        return false;
    return !mapping->private_copy || !pages_of(offset, length, &first, &end) ||
           !pages_has_any(&mapping->dirty, first, end);
}

static void fill_in(struct waiting_read *read, void (*run)(struct pool_job *), int fd, int64_t offset,
                    int64_t length)
{
    read->call.job.run = run;
    read->call.fd = fd;
    read->call.offset = (off_t)offset;
    read->call.length = (size_t)length;
}

/* Begin a read; takes the reference to it over. */
static PyObject *begin(PoolRead *read)
{
    if (pool_read_begin(read))
        return (PyObject *)read;
    Py_DECREF((PyObject *)read);
    return NULL;
}

/* Whether the time slice is spent: then an inline read has declined, and tried nothing. */
static bool is_slice_spent(void)
{
    return time_slice_is_spent(&thread_time_slice, monotonic_clock());
}

/* read(mapping, offset, length): None if the task should give way and try an inline read. One more
 * argument says that it has tried. */
static PyObject *queue_read(PoolQueue *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t offset, length;
    if (count < 3)
        return PyErr_Format(PyExc_TypeError, "read() takes a mapping, an offset and a length");
    Mapping *mapping = mapping_of(self, args[0]);
    if (!mapping)
        return NULL;
    bool untried = count == 3 && is_slice_spent();
    if (!parse_integer(args[1], &offset) || !parse_integer(args[2], &length) ||
        !is_readable(self, mapping, offset, length) ||
        (untried && inline_read_seems_warm(mapping, offset, length)))
        Py_RETURN_NONE;
    PoolRead *read = pool_read_make(self, 1, NULL);
    if (!read)
        return NULL;
    read->untried = untried;
    pool_read_pin(read, mapping);
    fill_in(&read->one, pool_read_own, mapping->fd, offset, length);
    return begin(read);
}

/* read_many(mapping, [(offset, length), ...]): all of them, with a list as the one result. */
static PyObject *queue_read_many(PoolQueue *self, PyObject *args)
{
    PyObject *object, *list;
    if (!PyArg_ParseTuple(args, "OO!:read_many", &object, &PyList_Type, &list))
        return NULL;
    Py_ssize_t count;
    Mapping *mapping = mapping_of(self, object);
    struct run *ranges = mapping ? runs_of(list, &count) : NULL;
    if (!ranges)
        return NULL;
    if (count == 0) {
        PyMem_Free(ranges);
        Py_RETURN_NONE;
    }
    PoolRead *read = pool_read_make(self, (size_t)count, NULL);
    bool readable = true;
    if (read && (read->results = PyList_New(count)))
        pool_read_pin(read, mapping);
    else
        Py_CLEAR(read);
    for (Py_ssize_t i = 0; read && i < count; i++) {
        int64_t offset = ranges[i].start, length = ranges[i].end;
        readable = readable && is_readable(self, mapping, offset, length);
        fill_in(&read->reads[i], pool_read_own, mapping->fd, offset, length);
    }
    PyMem_Free(ranges);
    if (!read || readable)
        return read ? begin(read) : NULL;
    Py_DECREF((PyObject *)read);
    Py_RETURN_NONE;
}

/* read_into(mapping, offset, memory, tell) */
static PyObject *queue_read_into(PoolQueue *self, PyObject *args)
{
    PyObject *object, *memory, *tell;
    long long offset;
    if (!PyArg_ParseTuple(args, "OLOO:read_into", &object, &offset, &memory, &tell))
        return NULL;
    Mapping *mapping = mapping_of(self, object);
    PoolRead *read = mapping ? pool_read_make(self, 1, tell) : NULL;
    if (!read)
        return NULL;
    if (!buffer_take(memory, &read->view, true)) {
        read->view.obj = NULL;
        Py_DECREF((PyObject *)read);
        return NULL;
    }
    if (!is_readable(self, mapping, offset, read->view.len)) {
        Py_DECREF((PyObject *)read);
        Py_RETURN_NONE;
    }
    pool_read_pin(read, mapping);
    fill_in(&read->one, pool_read_own, mapping->fd, offset, read->view.len);
    return begin(read);
}

/* read_ahead(mapping, offset, length, tell) */
static PyObject *queue_read_ahead(PoolQueue *self, PyObject *args)
{
    PyObject *object, *tell;
    long long offset, length;
    if (!PyArg_ParseTuple(args, "OLLO:read_ahead", &object, &offset, &length, &tell))
        return NULL;
    Mapping *mapping = mapping_of(self, object);
    if (!mapping)
        return NULL;
    if (!is_readable(self, mapping, offset, length))
        Py_RETURN_NONE;
    PoolRead *read = pool_read_make(self, 1, tell);
    if (!read)
        return NULL;
    pool_read_pin(read, mapping);
    fill_in(&read->one, pool_read_ahead, mapping->fd, offset, length);
    return begin(read);
}

/* read_file(fd, offset, length, tell): the caller keeps the descriptor open until `tell` is
 * called. */
static PyObject *queue_read_file(PoolQueue *self, PyObject *args)
{
    PyObject *tell;
    int fd;
    long long offset, length;
    if (!PyArg_ParseTuple(args, "iLLO:read_file", &fd, &offset, &length, &tell))
        return NULL;
    if (!pool_is_usable(self->pool))
        Py_RETURN_NONE;
    PoolRead *read = pool_read_make(self, 1, tell);
    if (!read)
        return NULL;
    fill_in(&read->one, pool_read_plain, fd, offset, length);
    return begin(read);
}

static int queue_traverse(PoolQueue *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->pool);
    return 0;
}

static void queue_dealloc(PoolQueue *self)
{
    PyObject_GC_UnTrack(self);
    if (self->pool && pool_is_usable(self->pool))
        pool_queue_drop(self->pool->pool, &self->queue);
    Py_XDECREF((PyObject *)self->pool);
    object_free(self);
}

static PyMethodDef queue_methods[] = { /* documented in _native_pool.pyi */
    {"read", (PyCFunction)(void (*)(void))queue_read, METH_FASTCALL, NULL},
    {"read_many", (PyCFunction)queue_read_many, METH_VARARGS, NULL},
    {"read_into", (PyCFunction)queue_read_into, METH_VARARGS, NULL},
    {"read_ahead", (PyCFunction)queue_read_ahead, METH_VARARGS, NULL},
    {"read_file", (PyCFunction)queue_read_file, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_traverse, queue_traverse},
    {Py_tp_methods, queue_methods},
    {0, NULL},
};

PyType_Spec pool_queue_spec = {
    .name = "aiommap._native.PoolQueue",
    .basicsize = sizeof(PoolQueue),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = queue_slots,
};
