/* log_writer.c: the LogWriter type, which lays records out, stores and publishes them.
 *
 * One thread at a time uses it; the Python side sees to that. It is the loop thread while no batch
 * is in flight, else the worker or the job of the pool that runs the batch.
 */
#include "log_writer.h"

#include "log_record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>
#include <sys/mman.h>

#include "../sys/clock.h"
#include "../sys/file_io.h"
#include "../sys/forks.h"
#include "../sys/guard.h"
#include "../sys/thread_waits.h"
#include "../sys/time_slice.h"

/* A write takes no more records once it has this much. */
#define BATCH_BYTES ((size_t)1 << 20)
/* How much memory a writer keeps for laying out the next batch. */
#define KEPT_BYTES ((size_t)2 << 20)
#define INLINE_RECORD_BYTES ((size_t)32 << 10)
#define SLOW_STORE_NS 1000000
/* A thread that stores again so soon has hardly waited in between; to ask takes 0.4 us of the 3 that an
 * append takes. */
#define SOON_NS 20000

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    int fd;
    if (!PyArg_ParseTuple(args, "i:LogWriter", &fd))
        return NULL;
    if (guard_install())
        return os_error(errno);
    LogWriter *self = (LogWriter *)PyType_GenericAlloc(type, 0);
    if (!self) {
        guard_remove();
        return NULL;
    }
    self->fd = -1;
    self->generation = fork_generation;
    self->page = mmap(NULL, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (self->page == MAP_FAILED) {
        int error = errno;
        self->page = NULL;
        Py_DECREF(self);
        return os_error(error);
    }
    return (PyObject *)self;
}

static void writer_dealloc(LogWriter *self)
{
    if (self->page)
        munmap(self->page, CONTROL_BYTES);
    guard_remove();
    Py_XDECREF((PyObject *)self->receipt_type);
    free(self->room);
    object_free(self);
}

static PyObject *writer_enter(LogWriter *self, PyObject *args)
{
    unsigned long long salt, position, base, sequence;
    long long at, limit;
    int fd;
    if (!PyArg_ParseTuple(args, "iKKKKLL:enter", &fd, &salt, &position, &base, &sequence, &at,
                          &limit))
        return NULL;
    struct file_stat found;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = file_stat(fd, &found);
    Py_END_ALLOW_THREADS
    if (error)
        return os_error(error);
    self->fd = fd;
    self->whole = found.size;
    self->salt = salt;
    self->origin = position - SEGMENT_HEADER_BYTES;
    self->base = base;
    self->sequence = sequence;
    self->at = at;
    self->limit = limit;
    Py_RETURN_NONE;
}

/* bind_loop_thread(receipt_type) */
static PyObject *writer_bind_loop_thread(LogWriter *self, PyObject *receipt_type)
{
    if (!log_is_receipt_type(Py_TYPE((PyObject *)self), receipt_type))
        return NULL;
    Py_XDECREF((PyObject *)self->receipt_type);
    self->receipt_type = (PyTypeObject *)Py_NewRef(receipt_type);
    self->loop_thread = pthread_self();
    Py_RETURN_NONE;
}

/* Unmap the control file: a mapping keeps its file system busy. */
static PyObject *writer_close(LogWriter *self, PyObject *Py_UNUSED(unused))
{
    char *page = self->page;
    self->page = NULL;
    self->fd = -1;
    Py_BEGIN_ALLOW_THREADS
    if (page)
        munmap(page, CONTROL_BYTES);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static uint32_t claim_of(const LogWriter *self, uint64_t sequence)
{
    uint64_t pending = sequence - self->durable;
    return pending < CLAIM_NONE ? (uint32_t)pending : CLAIM_NONE;
}

char *log_room_for(LogWriter *self, size_t bytes)
{
    if (bytes > self->room_bytes) {
        char *room = realloc(self->room, bytes);
        if (!room)
            return NULL;
        self->room = room;
        self->room_bytes = bytes;
    }
    return self->room;
}

void log_trim_room(LogWriter *self)
{
    if (self->room_bytes > KEPT_BYTES) {
        free(self->room);
        self->room = NULL;
        self->room_bytes = 0;
    }
}

static void encode_at(const LogWriter *self, char *to, int64_t at, enum frame_kind kind,
                      uint64_t sequence, const void *data, size_t length)
{
    struct frame_place place = {.salt = self->salt, .position = self->origin + (uint64_t)at};
    struct frame frame = {.sequence = sequence,
                          .length = (uint32_t)length,
                          .life = self->life,
                          .claim = claim_of(self, sequence),
                          .kind = (uint8_t)kind};
    frame_encode(to, &frame, &place, data);
}

int log_put(int fd, const char *from, size_t length, int64_t at)
{
    int error;
    size_t done = file_write_one(fd, from, length, at, &error);
    return done == length ? 0 : error ? error : EIO;
}

int log_sync_to(const LogWriter *self, int64_t at)
{
    return segment_sync(self->fd, at > self->whole ? at : self->whole);
}

bool log_publish_to(const LogWriter *self, int64_t at, uint64_t sequence, bool durable)
{
    uint64_t tail = self->origin + (uint64_t)at;
    if (!self->page)
        return false;
    struct published published = {.last_sequence = sequence - 1,
                                  .tail = tail,
                                  .durable = durable ? tail : 0};
    return control_publish(self->page, &published, coarse_clock());
}

void log_move_on(LogWriter *self, int64_t at, uint64_t sequence, bool durable)
{
    self->at = at;
    self->sequence = sequence;
    if (durable)
        self->durable = sequence - 1;
}

static bool publish(const LogWriter *self)
{
    return log_publish_to(self, self->at, self->sequence, self->durable == self->sequence - 1);
}

/* Room for an END frame is always kept; the first record of a segment goes in whatever its size. */
static bool fits(const LogWriter *self, int64_t at, uint64_t sequence, uint64_t bytes)
{
    return sequence == self->base ||
           at + (int64_t)bytes + FRAME_HEADER_BYTES <= self->limit;
}

/* Whether this is the process and the thread that may store inline, and there is a number left. */
static bool may_append(const LogWriter *self)
{
    return self->generation == fork_generation && self->fd >= 0 && self->receipt_type &&
           self->sequence < INT64_MAX && pthread_equal(self->loop_thread, pthread_self());
}

/* Lay out, store and publish a record, without the GIL; 0 or an errno number. */
static int store_one(LogWriter *self, char *to, const void *data, size_t length, int64_t begun)
{
    size_t whole = (size_t)frame_bytes(length);
    if (begun - self->stored_ns > SOON_NS)
        self->waits = thread_waits();
    encode_at(self, to, self->at, FRAME_RECORD, self->sequence, data, length);
    int error = log_put(self->fd, to, whole, self->at);
    if (error)
        return error;
    self->at += (int64_t)whole;
    self->sequence++;
    if (!publish(self))
        return EFAULT;
    self->stored_ns = monotonic_clock();
    /* A thread that merely lost the processor for a while did not wait for the disk. */
    if (self->stored_ns - begun > SLOW_STORE_NS && thread_waits() != self->waits) {
        self->waited_ns = self->stored_ns;
        self->granted_until = 0;
        self->stored_ns = 0;
    }
    return 0;
}

/* Append a record if it is small and fits; return its receipt or None. */
static PyObject *append_one(LogWriter *self, PyObject *owner, const void *data, Py_ssize_t length,
                            int64_t begun)
{
    size_t whole = (size_t)frame_bytes((uint64_t)length);
    char *to = NULL;
    int error;
    if ((size_t)length <= INLINE_RECORD_BYTES && fits(self, self->at, self->sequence, whole))
        to = log_room_for(self, whole);
    if (!to)
        Py_RETURN_NONE;
    Py_BEGIN_ALLOW_THREADS
    error = store_one(self, to, data, (size_t)length, begun);
    Py_END_ALLOW_THREADS
    if (error) {
        self->granted_until = 0;
        return os_error(error);
    }
    self->inline_appends++;
    return log_receipt_make(self->receipt_type, owner, self->sequence - 1, 1);
}

/* append(owner, data) */
static PyObject *writer_append(LogWriter *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer buffer;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "append() takes a log and data");
    if (!may_append(self))
        Py_RETURN_NONE;
    if (PyObject_GetBuffer(args[1], &buffer, PyBUF_SIMPLE))
        return NULL;
    PyObject *receipt = append_one(self, args[0], buffer.buf, buffer.len, monotonic_clock());
    PyBuffer_Release(&buffer);
    return receipt;
}

/* append_granted(owner, data): all that most appends need, in one call. */
static PyObject *writer_append_granted(LogWriter *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "append_granted() takes a log and data");
    if (!PyBytes_CheckExact(args[1]))
        Py_RETURN_NONE;
    Py_ssize_t length = PyBytes_Size(args[1]);
    if (self->at + (int64_t)frame_bytes((uint64_t)length) > self->granted_until)
        Py_RETURN_NONE;
    int64_t now = monotonic_clock();
    if (time_slice_is_spent(&thread_time_slice, now) || !may_append(self))
        Py_RETURN_NONE;
    return append_one(self, args[0], PyBytes_AsString(args[1]), length, now);
}

bool log_take_items(const LogWriter *self, PyObject *items, Py_ssize_t start, int64_t at,
                       uint64_t sequence, struct layout *layout)
{
    Py_ssize_t size = PyList_Size(items);
    layout->taken = 0;
    layout->bytes = 0;
    while (start + layout->taken < size && layout->taken < layout->count &&
           layout->bytes < BATCH_BYTES) {
        Py_buffer *buffer = &layout->buffers[layout->taken];
        PyObject *item = PyList_GetItem(items, start + layout->taken);
        if (!item || PyObject_GetBuffer(item, buffer, PyBUF_SIMPLE))
            return false;
        uint64_t whole = frame_bytes((uint64_t)buffer->len);
        if (!fits(self, at + (int64_t)layout->bytes, sequence + (uint64_t)layout->taken, whole)) {
            PyBuffer_Release(buffer);
            break;
        }
        layout->bytes += (size_t)whole;
        layout->taken++;
    }
    return true;
}

void log_release_items(struct layout *layout)
{
    while (layout->taken)
        PyBuffer_Release(&layout->buffers[--layout->taken]);
}

void log_encode_all(const LogWriter *self, char *to, int64_t at, uint64_t sequence,
                       const struct layout *layout)
{
    for (Py_ssize_t i = 0; i < layout->taken; i++) {
        const Py_buffer *buffer = &layout->buffers[i];
        encode_at(self, to, at, FRAME_RECORD, sequence + (uint64_t)i, buffer->buf,
                  (size_t)buffer->len);
        to += frame_bytes((uint64_t)buffer->len);
        at += (int64_t)frame_bytes((uint64_t)buffer->len);
    }
}

/* Lay out and store the items from `start` on that fit into the segment; *stored says how many,
 * and *error why there are not more. False with an exception. */
static bool store_items(LogWriter *self, PyObject *items, Py_ssize_t start, Py_ssize_t *stored,
                        int *error)
{
    enum { MOST_ITEMS = 4096 };
    struct layout layout = {.count = MOST_ITEMS};
    int64_t at = self->at;
    uint64_t sequence = self->sequence;
    bool fine = true;
    *stored = 0;
    *error = 0;
    layout.buffers = PyMem_Malloc(MOST_ITEMS * sizeof *layout.buffers);
    if (!layout.buffers)
        return PyErr_NoMemory(), false;
    do {
        char *to = NULL;
        fine = log_take_items(self, items, start + *stored, at, sequence, &layout);
        if (fine && layout.taken && !(to = log_room_for(self, layout.bytes)))
            fine = (PyErr_NoMemory(), false);
        if (!fine || !layout.taken)
            break;
        Py_BEGIN_ALLOW_THREADS
        log_encode_all(self, to, at, sequence, &layout);
        *error = log_put(self->fd, to, layout.bytes, at);
        Py_END_ALLOW_THREADS
        at += (int64_t)layout.bytes;
        sequence += (uint64_t)layout.taken;
        *stored += layout.taken;
        log_release_items(&layout);
    } while (!*error);
    log_release_items(&layout);
    PyMem_Free(layout.buffers);
    log_trim_room(self);
    if (fine && !*error) { /* all of it counts as stored, or nothing */
        self->at = at;
        self->sequence = sequence;
    }
    return fine;
}

static PyObject *writer_store(LogWriter *self, PyObject *args)
{
    PyObject *items;
    Py_ssize_t start, stored;
    int error;
    if (!PyArg_ParseTuple(args, "O!n:store", &PyList_Type, &items, &start) ||
        !store_items(self, items, start, &stored, &error))
        return NULL;
    return error ? os_error(error) : PyLong_FromSsize_t(stored);
}

static PyObject *writer_mark(LogWriter *self, PyObject *args)
{
    int kind, error;
    Py_buffer data;
    char frame[256];
    if (!PyArg_ParseTuple(args, "iy*:mark", &kind, &data))
        return NULL;
    size_t whole = (size_t)frame_bytes((uint64_t)data.len);
    if (whole > sizeof frame) {
        PyBuffer_Release(&data);
        return os_error(EINVAL);
    }
    encode_at(self, frame, self->at, (enum frame_kind)kind, self->sequence, data.buf,
              (size_t)data.len);
    PyBuffer_Release(&data);
    Py_BEGIN_ALLOW_THREADS
    error = log_put(self->fd, frame, whole, self->at);
    Py_END_ALLOW_THREADS
    if (error)
        return os_error(error);
    uint32_t crc;
    memcpy(&crc, frame, sizeof crc);
    self->at += (int64_t)whole;
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *writer_sync(LogWriter *self, PyObject *Py_UNUSED(unused))
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = log_sync_to(self, self->at);
    Py_END_ALLOW_THREADS
    if (error)
        return os_error(error);
    self->durable = self->sequence - 1;
    Py_RETURN_NONE;
}

static PyObject *writer_publish(LogWriter *self, PyObject *Py_UNUSED(unused))
{
    bool reached;
    Py_BEGIN_ALLOW_THREADS
    reached = publish(self);
    Py_END_ALLOW_THREADS
    if (!reached)
        return os_error(EFAULT);
    Py_RETURN_NONE;
}

static PyObject *writer_set_word(LogWriter *self, PyObject *args)
{
    int word;
    unsigned long long value;
    bool reached;
    if (!PyArg_ParseTuple(args, "iK:set_word", &word, &value))
        return NULL;
    if (word < 0 || word % 8 || word > CONTROL_BYTES - 8 || !self->page)
        return os_error(EINVAL);
    Py_BEGIN_ALLOW_THREADS
    reached = control_store(self->page, (enum control_word)word, value, coarse_clock()) &&
              control_wake(self->page, coarse_clock());
    Py_END_ALLOW_THREADS
    if (!reached)
        return os_error(EFAULT);
    Py_RETURN_NONE;
}

static PyObject *writer_get_position(LogWriter *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->origin + (uint64_t)self->at);
}

static PyMethodDef writer_methods[] = { /* documented in _native_log.pyi */
    {"enter", (PyCFunction)writer_enter, METH_VARARGS, NULL},
    {"bind_loop_thread", (PyCFunction)writer_bind_loop_thread, METH_O, NULL},
    {"append", (PyCFunction)(void (*)(void))writer_append, METH_FASTCALL, NULL},
    {"append_granted", (PyCFunction)(void (*)(void))writer_append_granted, METH_FASTCALL, NULL},
    {"store", (PyCFunction)writer_store, METH_VARARGS, NULL},
    {"close", (PyCFunction)writer_close, METH_NOARGS, NULL},
    {"begin_commit", (PyCFunction)log_begin_commit, METH_VARARGS, NULL},
    {"mark", (PyCFunction)writer_mark, METH_VARARGS, NULL},
    {"sync", (PyCFunction)writer_sync, METH_NOARGS, NULL},
    {"publish", (PyCFunction)writer_publish, METH_NOARGS, NULL},
    {"set_word", (PyCFunction)writer_set_word, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

#define FIELD(name, field, kind, flags) {name, kind, offsetof(LogWriter, field), flags, NULL}
static PyMemberDef writer_members[] = {
    FIELD("fd", fd, T_INT, READONLY),
    FIELD("at", at, T_LONGLONG, 0),
    FIELD("limit", limit, T_LONGLONG, 0),
    FIELD("base", base, T_ULONGLONG, READONLY),
    FIELD("sequence", sequence, T_ULONGLONG, 0),
    FIELD("durable", durable, T_ULONGLONG, 0),
    FIELD("life", life, T_UINT, 0),
    FIELD("waited_ns", waited_ns, T_LONGLONG, READONLY),
    FIELD("granted_until", granted_until, T_LONGLONG, 0),
    FIELD("inline_appends", inline_appends, T_ULONGLONG, READONLY),
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef writer_getset[] = {
    {"position", (getter)writer_get_position, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_methods, writer_methods},
    {Py_tp_members, writer_members},
    {Py_tp_getset, writer_getset},
    {0, NULL},
};

PyType_Spec log_writer_spec = {
    .name = "aiommap._native.LogWriter",
    .basicsize = sizeof(LogWriter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = writer_slots,
};
