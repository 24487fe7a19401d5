/* log_commit.c: a batch of a log as one job of the pool: laid out, stored, synced, published. */
#include "log_writer.h"

#include <errno.h>

#include "pool_commit.h"

#include "../sys/forks.h"

/* Where a commit failed. */
enum commit_phase { COMMIT_STORE, COMMIT_SYNC, COMMIT_PUBLISH };

struct log_commit { /* by one thread at a time */
    LogWriter *writer; /* strong; its fields stay as they are until the end */
    struct layout layout;
    char *to;          /* the writer's room */
    bool sync;
    int64_t at;        /* where the stored frames end */
    uint64_t next;     /* the sequence of the next record then */

    /* What became of it. */
    enum commit_phase phase;
    int error;
};

static void store_and_publish(void *call)
{
    struct log_commit *self = call;
    const LogWriter *writer = self->writer;
    log_encode_all(writer, self->to, writer->at, writer->sequence, &self->layout);
    self->error = log_put(writer->fd, self->to, self->layout.bytes, writer->at);
    if (self->error)
        return;
    self->phase = COMMIT_SYNC;
    if (self->sync)
        self->error = log_sync_to(writer, self->at);
    if (self->error)
        return;
    self->phase = COMMIT_PUBLISH;
    if (!log_publish_to(writer, self->at, self->next, self->sync))
        self->error = EFAULT;
}

static bool succeeded(const void *call) { return !((const struct log_commit *)call)->error; }

static PyObject *end(void *call)
{
    const struct log_commit *self = call;
    LogWriter *writer = self->writer;
    if (self->phase != COMMIT_STORE)
        log_move_on(writer, self->at, self->next, self->phase == COMMIT_PUBLISH && self->sync);
    return Py_BuildValue("(ii)", (int)self->phase, self->error);
}

static void release(void *call)
{
    struct log_commit *self = call;
    LogWriter *writer = self->writer;
    log_release_items(&self->layout);
    PyMem_Free(self->layout.buffers);
    log_trim_room(writer);
    Py_DECREF((PyObject *)writer);
}

static const struct commit_kind kind = {store_and_publish, succeeded, end, release};

/* begin_commit(queue, items, sync, tell): store, sync if wanted, and publish, in one job. */
PyObject *log_begin_commit(LogWriter *writer, PyObject *args)
{
    PyObject *queue, *items, *tell, *begun = NULL;
    int sync;
    if (!PyArg_ParseTuple(args, "OO!pO:begin_commit", &queue, &PyList_Type, &items, &sync, &tell))
        return NULL;
    if (writer->generation != fork_generation || writer->fd < 0)
        Py_RETURN_NONE;
    Py_ssize_t count = PyList_Size(items);
    struct log_commit *self = PyMem_Calloc(1, sizeof *self);
    if (!self)
        return PyErr_NoMemory();
    self->writer = (LogWriter *)Py_NewRef((PyObject *)writer);
    self->sync = sync;
    self->layout.buffers = PyMem_Malloc(((size_t)count + 1) * sizeof *self->layout.buffers);
    self->layout.count = self->layout.buffers ? count : 0;
    if (!self->layout.buffers)
        PyErr_NoMemory();
    else if (log_take_items(writer, items, 0, writer->at, writer->sequence, &self->layout))
        begun = Py_NewRef(Py_None);
    if (begun && count && self->layout.taken == count &&
        (self->to = log_room_for(writer, self->layout.bytes))) {
        self->at = writer->at + (int64_t)self->layout.bytes;
        self->next = writer->sequence + (uint64_t)count;
        Py_DECREF(begun);
        begun = pool_commit_begin(PyType_GetModuleState(Py_TYPE((PyObject *)writer)), queue, &kind,
                                  self, tell);
    }
    if (!begun || Py_IsNone(begun)) {
        release(self);
        PyMem_Free(self);
    }
    return begun;
}
