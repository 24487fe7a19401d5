/* log_reader.c: the LogCursor type, which makes records out of segments.
 *
 * One thread at a time uses a cursor; the Python side sees to that. `take` takes one record, and
 * grants some more. `async for` gets those without calling Python, one by one, so that the bytes of
 * a record are still in the processor's cache when its user looks at it.
 */
#include "log.h"
#include "log_next.h"
#include "log_record.h"
#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>

#include "../sys/clock.h"
#include "../sys/crc32c.h"
#include "../sys/file_io.h"
#include "../sys/forks.h"
#include "../sys/page.h"
#include "../sys/time_slice.h"

/* What one read brings; larger records are read by themselves. */
#define BUFFER_BYTES ((size_t)256 << 10)
/* Why the last `take` ended. */
enum cursor_state {
    CURSOR_LIMIT,  /* the limit is reached */
    CURSOR_COLD,   /* what comes next has to be read by a worker */
    CURSOR_END,    /* an END frame was passed; it stays so until another segment is entered */
    CURSOR_WRONG,  /* there is no good frame where one has to be */
};

typedef struct {
    PyObject_HEAD
    PyTypeObject *record_type; /* constant */
    PyTypeObject *next_type;   /* constant */
    /* The rest: GIL, and changed by whoever runs the one call that may be under way. */
    int fd;
    bool in_memory; /* settable; reads of the file never wait */
    struct frame_place place;
    int64_t offset;
    uint64_t proof;
    uint32_t last_crc;
    int state;
    char *room;     /* constant; of the buffer, and a page more */
    char *buffer;   /* in the room, as far into a page as its bytes are in the file (page.h) */
    int64_t start;  /* the offset of what is in the buffer */
    size_t filled;
    /* This many records, below an offset of the file, may be handed out without asking Python. */
    unsigned int granted;
    int64_t granted_end;
    PyObject *spare; /* a LogNext that is over, or NULL */
    unsigned long generation; /* constant; in a forked child fork_generation is another */
} LogCursor;

/* The state of the module that a type, or a base of it, belongs to; NULL with an exception. */
static const struct native_state *state_of(PyTypeObject *type)
{
    const struct native_state *state = NULL;
    while (type && !(state = PyType_GetModuleState(type))) {
        PyErr_Clear();
        type = PyType_GetSlot(type, Py_tp_base);
    }
    if (!state)
        PyErr_SetString(PyExc_TypeError, "a LogCursor has to be made by the module");
    return state;
}

static PyObject *cursor_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyTypeObject *record_type;
    if (!PyArg_ParseTuple(args, "O!:LogCursor", &PyType_Type, &record_type))
        return NULL;
    const struct native_state *state = state_of(type);
    if (!state)
        return NULL;
    LogCursor *self = (LogCursor *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->record_type = (PyTypeObject *)Py_NewRef((PyObject *)record_type);
    self->next_type = (PyTypeObject *)Py_NewRef((PyObject *)state->log_next_type);
    self->fd = -1;
    self->generation = fork_generation;
    self->room = malloc(BUFFER_BYTES + page_size());
    if (!self->room) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void cursor_dealloc(LogCursor *self)
{
    Py_XDECREF((PyObject *)self->record_type);
    Py_XDECREF((PyObject *)self->next_type);
    Py_XDECREF(self->spare);
    free(self->room);
    object_free(self);
}

static PyObject *cursor_enter(LogCursor *self, PyObject *args)
{
    unsigned long long salt, position, sequence;
    long long offset;
    unsigned int life;
    int fd, in_memory;
    if (!PyArg_ParseTuple(args, "iKKLKIp:enter", &fd, &salt, &position, &offset, &sequence, &life,
                          &in_memory))
        return NULL;
    self->fd = fd;
    self->in_memory = in_memory;
    self->place = (struct frame_place){
        .salt = salt, .position = position, .sequence = sequence, .life = life};
    self->offset = offset;
    self->filled = 0;
    self->granted = 0;
    self->state = CURSOR_LIMIT;
    Py_RETURN_NONE;
}

/* Place the buffer for a read from the cursor's place on, up to `end`; returns how long that is. */
static size_t prepare(LogCursor *self, int64_t end)
{
    int64_t left = end - self->offset;
    self->buffer = place_as_in_file(self->room, self->offset);
    self->start = self->offset;
    return left < (int64_t)BUFFER_BYTES ? (size_t)left : BUFFER_BYTES;
}

/* Read from the cursor's place on, at most up to `end`; false when that would have to wait, or with
 * an errno number in *error. */
static bool fill_now(LogCursor *self, int64_t end, int *error)
{
    ssize_t got;
    size_t length = prepare(self, end);
    Py_BEGIN_ALLOW_THREADS
    got = self->in_memory ? file_read(self->fd, self->buffer, length, self->offset)
                          : file_read_nowait(self->fd, self->buffer, length, self->offset);
    Py_END_ALLOW_THREADS
    self->filled = got > 0 ? (size_t)got : 0;
    if (got < 0 && got != -EAGAIN && got != -EOPNOTSUPP && got != -EINTR && got != -ENOSYS)
        *error = (int)-got;
    return got > 0;
}

static int fill_waiting(LogCursor *self, int64_t end)
{
    ssize_t got;
    size_t length = prepare(self, end);
    Py_BEGIN_ALLOW_THREADS
    got = file_read(self->fd, self->buffer, length, self->offset);
    Py_END_ALLOW_THREADS
    self->filled = got > 0 ? (size_t)got : 0;
    return got < 0 ? (int)-got : 0;
}

/* Pass a frame that was checked. */
static void pass(LogCursor *self, const struct frame *frame)
{
    uint64_t proof = frame_proof(frame);
    if (proof > self->proof)
        self->proof = proof;
    self->place.sequence += frame->kind == FRAME_RECORD;
    self->place.life = frame->life;
    self->place.position += frame_bytes(frame->length);
    self->offset += (int64_t)frame_bytes(frame->length);
    self->last_crc = frame->crc;
    if (frame->kind == FRAME_END)
        self->state = CURSOR_END;
}

/* Make a record of bytes, which may be NULL with an exception, and pass its frame. */
static PyObject *keep(LogCursor *self, const struct frame *frame, PyObject *data)
{
    PyObject *record =
        data ? log_record_make(self->record_type, frame->sequence, frame->life, data) : NULL;
    if (record)
        pass(self, frame);
    return record;
}

/* Read and check a record that is larger than the buffer, straight into its own bytes. NULL without an
 * exception if it is none, or with an errno number in *error. */
static PyObject *take_large(LogCursor *self, const struct frame *frame, int *error)
{
    char header[FRAME_HEADER_BYTES], padding[FRAME_ALIGNMENT];
    size_t length = frame->length;
    size_t rest = (size_t)frame_bytes(length) - FRAME_HEADER_BYTES - length;
    struct frame_place place = self->place;
    int64_t at = self->offset + FRAME_HEADER_BYTES;
    int fd = self->fd;
    ssize_t got, more;
    bool good = false;
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!data)
        return NULL;
    memcpy(header, self->buffer + (self->offset - self->start), sizeof header);
    /* SAFETY: nobody else knows the new object yet, so its bytes can be filled without the GIL. */
    char *to = PyBytes_AsString(data);
    Py_BEGIN_ALLOW_THREADS
    got = file_read(fd, to, length, at);
    more = file_read(fd, padding, rest, at + (int64_t)length);
    if (got == (ssize_t)length && more == (ssize_t)rest) {
        static const char zeros[FRAME_ALIGNMENT];
        good = memcmp(padding, zeros, rest) == 0 &&
               frame_checksum(header, to, length, &place) == frame->crc;
    }
    Py_END_ALLOW_THREADS
    *error = got < 0 ? (int)-got : more < 0 ? (int)-more : 0;
    if (good && frame->kind == FRAME_RECORD)
        return keep(self, frame, data);
    Py_DECREF(data);
    if (good)
        pass(self, frame);
    else
        self->state = CURSOR_WRONG;
    return NULL;
}

/* Make a record while its bytes are copied and summed: for data that is long enough for that to
 * pay. */
static PyObject *take_long(LogCursor *self, const char *from, const struct frame *frame,
                           enum frame_verdict *verdict)
{
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)frame->length);
    if (!data)
        return NULL;
    /* SAFETY: nobody else knows the new object yet, and it has room for `length` bytes. */
    *verdict = frame_copy(PyBytes_AsString(data), from, &self->place, frame);
    if (*verdict == FRAME_FITS)
        return keep(self, frame, data);
    Py_DECREF(data);
    return NULL;
}

/* The next record in the buffer; NULL without an exception where there is none. Then *frame is what was
 * not taken, and *verdict says why. */
static PyObject *take_buffered(LogCursor *self, int64_t end, struct frame *frame,
                               enum frame_verdict *verdict)
{
    *verdict = FRAME_INCOMPLETE;
    *frame = (struct frame){0};
    while (self->offset < end && self->state != CURSOR_END && self->offset >= self->start &&
           self->offset < self->start + (int64_t)self->filled) {
        const char *from = self->buffer + (self->offset - self->start);
        size_t available = (size_t)(self->start + (int64_t)self->filled - self->offset);
        *verdict = frame_begin(from, available, &self->place, frame);
        if (*verdict == FRAME_FITS && frame->kind == FRAME_RECORD &&
            frame->length >= COPY_AND_SUM_BYTES)
            return take_long(self, from, frame, verdict);
        if (*verdict == FRAME_FITS)
            *verdict = frame_check(from, &self->place, frame);
        if (*verdict != FRAME_FITS)
            return NULL;
        if (frame->kind == FRAME_RECORD)
            return keep(self, frame,
                        PyBytes_FromStringAndSize(from + FRAME_HEADER_BYTES,
                                                  (Py_ssize_t)frame->length));
        pass(self, frame);
    }
    return NULL;
}

/* The next record below an offset of the file. NULL without an exception if there is none, or it is not
 * reached yet; `state` says which. */
static PyObject *take(LogCursor *self, int64_t end, bool waits)
{
    int error = 0;
    struct frame frame;
    enum frame_verdict verdict;
    int64_t begun = self->offset;
    if (self->state == CURSOR_END)
        return NULL;
    self->state = CURSOR_LIMIT;
    if (begun >= end)
        return NULL;
    /* First what is left of an earlier read, as far as it is whole frames, which do not change any
     * more. */
    PyObject *record = take_buffered(self, end, &frame, &verdict);
    if (record || self->offset > begun || PyErr_Occurred())
        return record;
    if (waits)
        error = fill_waiting(self, end);
    else if (!fill_now(self, end, &error) && !error) {
        self->state = CURSOR_COLD;
        return NULL;
    }
    if (error)
        return os_error(error);
    record = take_buffered(self, end, &frame, &verdict);
    if (record || self->offset > begun || PyErr_Occurred())
        return record;
    if (verdict != FRAME_INCOMPLETE || self->filled < FRAME_HEADER_BYTES ||
        frame_bytes(frame.length) > (uint64_t)(end - self->offset)) {
        self->state = !waits && verdict == FRAME_INCOMPLETE ? CURSOR_COLD : CURSOR_WRONG;
        return NULL;
    }
    if (!waits) {
        self->state = CURSOR_COLD;
        return NULL;
    }
    record = take_large(self, &frame, &error);
    return error ? os_error(error) : record;
}

static PyObject *cursor_take(LogCursor *self, PyObject *args)
{
    long long end;
    int waits;
    unsigned int more;
    if (!PyArg_ParseTuple(args, "LpI:take", &end, &waits, &more))
        return NULL;
    self->granted = 0; /* nobody takes a granted record while this reads */
    PyObject *record = take(self, end, waits);
    if (record) {
        self->granted = more;
        self->granted_end = end;
        return record;
    }
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* Whether records are granted, and to this process (I10). */
static bool may_go_on(const LogCursor *self)
{
    return self->granted && self->generation == fork_generation;
}

/* Whether the buffer ended before a granted record did, and holds more now. If this reads in vain or
 * fails, or the time slice is spent, Python has to look, and `take` reads once more. */
static bool read_on(LogCursor *self, const struct frame *frame, enum frame_verdict verdict)
{
    int error = 0;
    return verdict == FRAME_INCOMPLETE && self->state != CURSOR_END &&
           frame_bytes(frame->length) <= BUFFER_BYTES && self->offset < self->granted_end &&
           !PyErr_Occurred() && !time_slice_is_spent(&thread_time_slice, monotonic_clock()) &&
           fill_now(self, self->granted_end, &error);
}

static PyObject *take_granted(PyObject *cursor)
{
    LogCursor *self = (LogCursor *)cursor;
    struct frame frame;
    enum frame_verdict verdict;
    if (!may_go_on(self))
        return NULL;
    unsigned int granted = self->granted;
    self->granted = 0; /* nobody takes a granted record while this reads */
    PyObject *record = take_buffered(self, self->granted_end, &frame, &verdict);
    if (!record && read_on(self, &frame, verdict))
        record = take_buffered(self, self->granted_end, &frame, &verdict);
    if (record)
        self->granted = granted - 1;
    return record;
}

static void keep_next(PyObject *cursor, PyObject *next)
{
    LogCursor *self = (LogCursor *)cursor;
    PyObject *old = self->spare;
    if (old == next)
        return;
    self->spare = Py_NewRef(next);
    Py_XDECREF(old);
}

static const struct log_grants grants = {take_granted, keep_next};

/* __anext__. Where nothing is granted, `_advance` of a subclass, a coroutine function, has to
 * look. */
static PyObject *cursor_next(LogCursor *self)
{
    return may_go_on(self)
               ? log_next_make(self->next_type, &self->spare, (PyObject *)self, &grants)
               : PyObject_CallMethod((PyObject *)self, "_advance", NULL);
}

/* Grant nothing more. */
static PyObject *cursor_leave(LogCursor *self, PyObject *Py_UNUSED(unused))
{
    self->granted = 0;
    Py_RETURN_NONE;
}

/* Walk on without making records; `until` is the record to stop before. */
static PyObject *cursor_seek(LogCursor *self, PyObject *args)
{
    unsigned long long until;
    long long end;
    int error;
    if (!PyArg_ParseTuple(args, "KL:seek", &until, &end))
        return NULL;
    struct log_scan scan = {.fd = self->fd,
                            .place = self->place,
                            .offset = self->offset,
                            .end = end,
                            .until = until,
                            .proof = self->proof};
    Py_BEGIN_ALLOW_THREADS
    error = log_scan(&scan);
    Py_END_ALLOW_THREADS
    if (error)
        return os_error(error);
    self->place = scan.place;
    self->offset = scan.offset;
    self->proof = scan.proof;
    if (scan.last_crc || scan.records)
        self->last_crc = scan.last_crc;
    self->filled = 0;
    self->granted = 0;
    self->state = CURSOR_LIMIT;
    return Py_BuildValue("(KKLL)", (unsigned long long)scan.records,
                         (unsigned long long)scan.first, (long long)scan.end_at,
                         (long long)scan.proven_at);
}

static PyMethodDef cursor_methods[] = { /* documented in _native_log.pyi */
    {"enter", (PyCFunction)cursor_enter, METH_VARARGS, NULL},
    {"take", (PyCFunction)cursor_take, METH_VARARGS, NULL},
    {"leave", (PyCFunction)cursor_leave, METH_NOARGS, NULL},
    {"seek", (PyCFunction)cursor_seek, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

#define FIELD(name, field, kind, flags) {name, kind, offsetof(LogCursor, field), flags, NULL}
static PyMemberDef cursor_members[] = {
    FIELD("fd", fd, T_INT, READONLY),
    FIELD("sequence", place.sequence, T_ULONGLONG, READONLY),
    FIELD("position", place.position, T_ULONGLONG, READONLY),
    FIELD("life", place.life, T_UINT, READONLY),
    FIELD("offset", offset, T_LONGLONG, READONLY),
    FIELD("proof", proof, T_ULONGLONG, 0),
    FIELD("last_crc", last_crc, T_UINT, READONLY),
    FIELD("state", state, T_INT, READONLY),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot cursor_slots[] = {
    {Py_tp_new, cursor_new},
    {Py_am_aiter, PyObject_SelfIter},
    {Py_am_anext, cursor_next},
    {Py_tp_dealloc, cursor_dealloc},
    {Py_tp_methods, cursor_methods},
    {Py_tp_members, cursor_members},
    {0, NULL},
};

PyType_Spec log_cursor_spec = {
    .name = "aiommap._native.LogCursor",
    .basicsize = sizeof(LogCursor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = cursor_slots,
};
