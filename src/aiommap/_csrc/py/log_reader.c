/* log_reader.c: records as Python sees them, and the cursor that makes them out of segments.
 *
 * One thread at a time uses a cursor, which the Python side sees to.
 */
#include "log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>

#include "../sys/crc32c.h"
#include "../sys/file_io.h"
#include "../sys/guard.h"

/* What one read brings; larger records are read by themselves. */
#define BUFFER_BYTES ((size_t)256 << 10)
/* What one turn of the loop decodes at most: some 50 microseconds. */
#define TURN_RECORDS 512

/* Why a turn ended. */
enum cursor_state {
    CURSOR_LIMIT,  /* the limit is reached, or the turn is over */
    CURSOR_COLD,   /* what comes next has to be read by a worker */
    CURSOR_END,    /* an END frame was passed */
    CURSOR_WRONG,  /* there is no good frame where one has to be */
};

typedef struct {
    PyObject_HEAD
    unsigned long long sequence; /* constant */
    PyObject *data;              /* constant */
    unsigned int life;           /* constant */
} LogRecord;

typedef struct {
    PyObject_HEAD
    PyTypeObject *record_type; /* constant */
    /* The rest: GIL, and changed by whoever runs the one call that may be under way. */
    int fd;
    bool in_memory; /* settable; reads of the file never wait */
    struct frame_place place;
    int64_t offset, limit;
    uint64_t proof;
    uint32_t last_crc;
    int state;
    char *buffer;
    int64_t start;  /* of what is in the buffer */
    size_t filled;
} LogCursor;

static PyObject *record_make(PyTypeObject *type, uint64_t sequence, uint32_t life, PyObject *data)
{
    LogRecord *self = (LogRecord *)PyType_GenericAlloc(type, 0);
    if (!self) {
        Py_DECREF(data);
        return NULL;
    }
    self->sequence = sequence;
    self->life = life;
    self->data = data;
    return (PyObject *)self;
}

static PyObject *record_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sequence", "data", "life", NULL};
    unsigned long long sequence;
    unsigned int life;
    PyObject *data;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KSI:LogRecord", names, &sequence, &data, &life))
        return NULL;
    return record_make(type, sequence, life, Py_NewRef(data));
}

static void record_dealloc(LogRecord *self)
{
    Py_XDECREF(self->data);
    object_free(self);
}

#define RECORD_FIELD(name, kind) {#name, kind, offsetof(LogRecord, name), READONLY, NULL}
static PyMemberDef record_members[] = {
    RECORD_FIELD(sequence, T_ULONGLONG),
    RECORD_FIELD(data, T_OBJECT_EX),
    RECORD_FIELD(life, T_UINT),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot record_slots[] = {
    {Py_tp_new, record_new},
    {Py_tp_dealloc, record_dealloc},
    {Py_tp_members, record_members},
    {0, NULL},
};

PyType_Spec log_record_spec = {
    .name = "aiommap.LogRecord",
    .basicsize = sizeof(LogRecord),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = record_slots,
};

static PyObject *cursor_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyTypeObject *record_type;
    if (!PyArg_ParseTuple(args, "O!:LogCursor", &PyType_Type, &record_type))
        return NULL;
    LogCursor *self = (LogCursor *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->record_type = (PyTypeObject *)Py_NewRef((PyObject *)record_type);
    self->fd = -1;
    self->buffer = malloc(BUFFER_BYTES);
    if (!self->buffer) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void cursor_dealloc(LogCursor *self)
{
    Py_XDECREF((PyObject *)self->record_type);
    free(self->buffer);
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
    self->state = CURSOR_LIMIT;
    Py_RETURN_NONE;
}

static size_t wanted(const LogCursor *self, int64_t end)
{
    int64_t left = end - self->offset;
    return left < (int64_t)BUFFER_BYTES ? (size_t)left : BUFFER_BYTES;
}

/* Read from the cursor's place on, at most up to `end`; false when that would have to wait, or with
 * an errno number in *error. */
static bool fill_now(LogCursor *self, int64_t end, int *error)
{
    ssize_t got;
    Py_BEGIN_ALLOW_THREADS
    size_t length = wanted(self, end);
    got = self->in_memory ? file_read(self->fd, self->buffer, length, self->offset)
                          : file_read_nowait(self->fd, self->buffer, length, self->offset);
    Py_END_ALLOW_THREADS
    self->start = self->offset;
    self->filled = got > 0 ? (size_t)got : 0;
    if (got < 0 && got != -EAGAIN && got != -EOPNOTSUPP && got != -EINTR && got != -ENOSYS)
        *error = (int)-got;
    return got > 0;
}

static int fill_waiting(LogCursor *self, int64_t end)
{
    ssize_t got;
    Py_BEGIN_ALLOW_THREADS
    got = file_read(self->fd, self->buffer, wanted(self, end), self->offset);
    Py_END_ALLOW_THREADS
    self->start = self->offset;
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

static bool keep(PyObject *list, LogCursor *self, const struct frame *frame, PyObject *data)
{
    PyObject *record =
        data ? record_make(self->record_type, frame->sequence, frame->life, data) : NULL;
    bool kept = record && PyList_Append(list, record) == 0;
    Py_XDECREF(record);
    return kept;
}

/* Read and check a record that is larger than the buffer, straight into its own bytes. */
static bool take_large(LogCursor *self, PyObject *list, const struct frame *frame, int *error)
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
        return false;
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
    if (!good) {
        Py_DECREF(data);
        self->state = CURSOR_WRONG;
        return true;
    }
    if (frame->kind != FRAME_RECORD)
        Py_DECREF(data);
    else if (!keep(list, self, frame, data))
        return false;
    pass(self, frame);
    return true;
}

/* Decode what is in the buffer; false with an exception. *frame is the one that was not taken. */
static bool decode_buffer(LogCursor *self, PyObject *list, int64_t end, struct frame *frame,
                          enum frame_verdict *verdict)
{
    *verdict = FRAME_INCOMPLETE;
    *frame = (struct frame){0};
    if (self->offset < self->start || self->offset >= self->start + (int64_t)self->filled)
        return true;
    for (int turns = 0; turns < TURN_RECORDS && self->offset < end && self->state != CURSOR_END;
         turns++) {
        const char *from = self->buffer + (self->offset - self->start);
        size_t available = (size_t)(self->start + (int64_t)self->filled - self->offset);
        *verdict = frame_decode(from, available, &self->place, frame);
        if (*verdict != FRAME_FITS)
            return true;
        if (frame->kind == FRAME_RECORD &&
            !keep(list, self, frame,
                  PyBytes_FromStringAndSize(from + FRAME_HEADER_BYTES, (Py_ssize_t)frame->length)))
            return false;
        pass(self, frame);
    }
    *verdict = FRAME_FITS;
    return true;
}

static PyObject *fail(PyObject *list, int error)
{
    Py_DECREF(list);
    return error ? os_error(error) : NULL;
}

static PyObject *cursor_take(LogCursor *self, PyObject *args)
{
    long long end;
    int waits, error = 0;
    struct frame frame;
    enum frame_verdict verdict;
    if (!PyArg_ParseTuple(args, "Lp:take", &end, &waits))
        return NULL;
    PyObject *list = PyList_New(0);
    if (!list)
        return NULL;
    self->state = CURSOR_LIMIT;
    if (self->offset >= end)
        return list;
    int64_t begun = self->offset;
    /* What is left of an earlier read, as far as whole frames go: those do not change any more. */
    if (!decode_buffer(self, list, end, &frame, &verdict))
        return fail(list, 0);
    if (self->offset > begun)
        return list;
    if (waits)
        error = fill_waiting(self, end);
    else if (!fill_now(self, end, &error))
        self->state = CURSOR_COLD;
    if (error)
        return fail(list, error);
    if (self->state == CURSOR_COLD)
        return list;
    if (!decode_buffer(self, list, end, &frame, &verdict))
        return fail(list, 0);
    if (self->offset > begun)
        return list; /* what did not fit is the next turn's first */
    if (verdict == FRAME_INCOMPLETE && self->filled >= FRAME_HEADER_BYTES &&
        frame_bytes(frame.length) <= (uint64_t)(end - self->offset)) {
        if (!waits)
            self->state = CURSOR_COLD;
        else if (!take_large(self, list, &frame, &error) || error)
            return fail(list, error);
        return list;
    }
    self->state = !waits && verdict == FRAME_INCOMPLETE ? CURSOR_COLD : CURSOR_WRONG;
    return list;
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
    self->state = scan.end_at >= 0 ? CURSOR_END : CURSOR_LIMIT;
    return Py_BuildValue("(KKLL)", (unsigned long long)scan.records,
                         (unsigned long long)scan.first, (long long)scan.end_at,
                         (long long)scan.proven_at);
}

static PyMethodDef cursor_methods[] = { /* documented in _native.pyi */
    {"enter", (PyCFunction)cursor_enter, METH_VARARGS, NULL},
    {"take", (PyCFunction)cursor_take, METH_VARARGS, NULL},
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
    {Py_tp_dealloc, cursor_dealloc},
    {Py_tp_methods, cursor_methods},
    {Py_tp_members, cursor_members},
    {0, NULL},
};

PyType_Spec log_cursor_spec = {
    .name = "aiommap._native.LogCursor",
    .basicsize = sizeof(LogCursor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = cursor_slots,
};

static PyObject *sum_crc32c(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer data;
    unsigned int crc = 0;
    int way = -1;
    if (!PyArg_ParseTuple(args, "y*|Ii:crc32c", &data, &crc, &way))
        return NULL;
    uint32_t sum = crc;
    bool done = true;
    if (way < 0)
        sum = crc32c(crc, data.buf, (size_t)data.len);
    else
        done = crc32c_by((enum crc32c_way)way, &sum, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    if (!done)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLong(sum);
}

/* Search as the arguments of a function of this module say; false with an exception. */
static bool run_search(PyObject *args, const char *format, struct log_search *search)
{
    unsigned long long salt, position, sequence, base;
    long long offset, end;
    int fd, error;
    if (!PyArg_ParseTuple(args, format, &fd, &salt, &position, &offset, &end, &sequence, &base))
        return false;
    search->fd = fd;
    search->salt = salt;
    search->position = position;
    search->offset = offset;
    search->end = end;
    search->sequence = sequence;
    search->base = base;
    Py_BEGIN_ALLOW_THREADS
    error = log_search(search);
    Py_END_ALLOW_THREADS
    if (error)
        os_error(error);
    return !error;
}

static PyObject *search_frames(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct log_search search = {0};
    if (!run_search(args, "iKKLLKK:search_frames", &search))
        return NULL;
    return Py_BuildValue("(KKIL)", (unsigned long long)search.proof,
                         (unsigned long long)search.records, (unsigned int)search.life,
                         (long long)search.last_end);
}

static PyObject *find_record(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct log_search search = {.first_only = true};
    if (!run_search(args, "iKKLLKK:find_record", &search))
        return NULL;
    if (search.offset >= search.end || !search.records)
        Py_RETURN_NONE;
    return Py_BuildValue("(KLI)", (unsigned long long)search.sequence, (long long)search.offset,
                         (unsigned int)search.life);
}

static PyObject *start_writeback(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd, error;
    long long offset, length;
    if (!PyArg_ParseTuple(args, "iLL:start_writeback", &fd, &offset, &length))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = file_start_writeback(fd, offset, length);
    Py_END_ALLOW_THREADS
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

PyMethodDef log_functions[] = { /* documented in _native.pyi */
    {"crc32c", sum_crc32c, METH_VARARGS, NULL},
    {"search_frames", search_frames, METH_VARARGS, NULL},
    {"find_record", find_record, METH_VARARGS, NULL},
    {"start_writeback", start_writeback, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
