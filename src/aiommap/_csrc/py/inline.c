/* inline.c: the verbs of the loop thread. They never wait for a disk (I1).
 *
 * Each returns None when it cannot answer at once; then nothing has happened, and the caller
 * takes the slow way, which also forms the error if there is one to form.
 */
#include "inline.h"

#include <errno.h>

#include "accounting.h"
#include "buffer.h"
#include "pin.h"
#include "pool_object.h"
#include "receipt.h"
#include "state.h"

#include "../sys/clock.h"

/* Copies up to this size are cheaper than letting the GIL go and getting it back (I2). */
#define GIL_COPY_LIMIT_BYTES ((size_t)64 << 10)
/* A read of this size stops the loop for about 0.2 ms; longer ones go to a worker. */
#define INLINE_READ_LIMIT_BYTES ((size_t)1 << 20)
#define INLINE_WRITE_LIMIT_BYTES GIL_COPY_LIMIT_BYTES
/* From here on mincore(2) and a guarded copy are faster than preadv2(2): docs/decisions.md. */
#define MAPPED_READ_BYTES ((size_t)32 << 10)
/* Residency is checked again for every piece, so that a check never is older than ~20 us. */
#define MAPPED_READ_PIECE_BYTES ((size_t)256 << 10)

bool parse_integer(PyObject *object, int64_t *value)
{
    if (!PyLong_Check(object))
        return false;
    int overflow;
    *value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
}

static bool slice_allows(const Mapping *self, int64_t now)
{
    return is_loop_thread(self) && !time_slice_is_spent(&thread_time_slice, now);
}

/* A guarded copy out of pages that are known to be present. */
static bool copy_present(Mapping *self, char *to, int64_t offset, size_t length)
{
    size_t copied;
    struct pin pin = {0};
    if (length <= GIL_COPY_LIMIT_BYTES)
        copied = region_copy_out(self->region, (size_t)offset, to, length);
    else
        WITHOUT_GIL(pin, self,
                    copied = region_copy_out(pin.region, (size_t)offset, to, length););
    if (copied < length && !pin.moved)
        self->counters.faults++;
    return copied == length && !pin.moved;
}

/* Check and copy piece by piece, so that little time passes between check and copy. The size is
 * checked last: the last page of a truncated file still reads, as zeros past the end. */
static size_t copy_checked(const struct region *region, int fd, char *to, size_t offset,
                           size_t length)
{
    size_t done = 0;
    while (done < length) {
        size_t piece = length - done < MAPPED_READ_PIECE_BYTES ? length - done
                                                               : MAPPED_READ_PIECE_BYTES;
        if (!region_is_resident(region, offset + done, piece))
            break;
        size_t copied = region_copy_out(region, offset + done, to + done, piece);
        done += copied;
        if (copied < piece)
            break;
    }
    return file_own(fd, (off_t)offset, done);
}

static bool read_mapped(Mapping *self, char *to, int64_t offset, size_t length)
{
    size_t done;
    struct pin pin = {0};
    if (length <= GIL_COPY_LIMIT_BYTES)
        done = copy_checked(self->region, self->fd, to, (size_t)offset, length);
    else
        WITHOUT_GIL(pin, self,
                    done = copy_checked(pin.region, pin.fd, to, (size_t)offset, length););
    return done == length && !pin.moved;
}

/* Read without waiting; only the bytes that the file has had throughout count. */
static ssize_t read_own(int fd, char *to, size_t length, int64_t offset, bool nowait)
{
    if (!nowait)
        return file_read_own(fd, to, length, (off_t)offset);
    ssize_t got = file_read_nowait(fd, to, length, (off_t)offset);
    return got == (ssize_t)length ? (ssize_t)file_own(fd, (off_t)offset, length) : got;
}

/* Whether a read through the descriptor can be tried: where so many are in flight, only of what is in
 * memory (py/pool_object.h). */
static bool may_probe(const Mapping *self, int64_t offset, size_t length)
{
    if (thread_cold_reads < COLD_READS_MANY || self->in_memory)
        return true;
    return mapping_sees_residency(self) && mapping_is_current(self) &&
           region_is_resident(self->region, (size_t)offset, length);
}

bool inline_read_is_due(const Mapping *self, int64_t offset, int64_t length)
{
    return time_slice_is_spent(&thread_time_slice, monotonic_clock()) &&
           may_probe(self, offset, (size_t)length);
}

/* Read through the descriptor, which never waits and never faults. */
static bool read_cached(Mapping *self, char *to, int64_t offset, size_t length)
{
    ssize_t got;
    struct pin pin;
    pin.moved = false;
    bool nowait = self->nowait;
    if (nowait && length <= GIL_COPY_LIMIT_BYTES)
        got = read_own(self->fd, to, length, offset, nowait);
    else
        WITHOUT_GIL(pin, self, got = read_own(pin.fd, to, length, offset, nowait););
    if (got == (ssize_t)length)
        return !pin.moved;
    if (got == -EOPNOTSUPP || got == -EPERM || got == -ENOSYS)
        self->nowait = false; /* this file system, sandbox or kernel has no NOWAIT reads */
    return false;
}

/* True when `length` bytes were read without waiting. Needs a valid range. */
static bool read_now(Mapping *self, char *to, int64_t offset, size_t length)
{
    if (length == 0)
        return true;
    if (self->locked.count && spans_cover(&self->locked, offset, offset + (int64_t)length) &&
        mapping_is_current(self))
        return copy_present(self, to, offset, length);
    if (self->private_copy) {
        size_t first, end;
        pages_of(offset, (int64_t)length, &first, &end);
        /* Private pages are not in the file: only the mapping has them. */
        if (pages_has_any(&self->dirty, first, end))
            return mapping_sees_residency(self) && mapping_is_current(self) &&
                   read_mapped(self, to, offset, length);
    }
    if (!self->nowait && !self->in_memory)
        return false;
    if (length >= MAPPED_READ_BYTES && mapping_sees_residency(self) && mapping_is_current(self))
        return read_mapped(self, to, offset, length);
    return may_probe(self, offset, length) && read_cached(self, to, offset, length);
}

static bool read_counted(Mapping *self, char *to, int64_t offset, size_t length)
{
    bool done = read_now(self, to, offset, length);
    if (done)
        self->counters.inline_reads++;
    else
        self->counters.fell_back_reads++;
    return done;
}

static PyObject *read_bytes(Mapping *self, int64_t offset, int64_t length)
{
    /* Bytes are nothing that garbage collection knows, so making them runs no Python code (mapping.2). */
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!bytes)
        return NULL;
    if (read_counted(self, PyBytes_AsString(bytes), offset, (size_t)length))
        return bytes;
    Py_DECREF(bytes);
    Py_RETURN_NONE;
}

PyObject *mapping_read_inline(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t offset, length;
    if (count != 2 || !parse_integer(args[0], &offset) || !parse_integer(args[1], &length) ||
        !mapping_is_usable(self) || !range_is_valid(offset, length, self->reach) ||
        (uint64_t)length > INLINE_READ_LIMIT_BYTES || !slice_allows(self, monotonic_clock()))
        Py_RETURN_NONE;
    return read_bytes(self, offset, length);
}

PyObject *mapping_read_nowait(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t offset, length;
    if (count != 2 || !parse_integer(args[0], &offset) || !parse_integer(args[1], &length) ||
        !mapping_is_usable(self) || !range_is_valid(offset, length, self->reach))
        Py_RETURN_NONE;
    return read_bytes(self, offset, length);
}

PyObject *mapping_read_into_inline(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t offset;
    Py_buffer view;
    if (count != 2 || !parse_integer(args[0], &offset) || !slice_allows(self, monotonic_clock()))
        Py_RETURN_NONE;
    if (!buffer_take(args[1], &view, true)) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    bool done = mapping_is_usable(self) && /* after the buffer, which may be Python's (mapping.2) */
                range_is_valid(offset, view.len, self->reach) &&
                (size_t)view.len <= INLINE_READ_LIMIT_BYTES &&
                read_counted(self, view.buf, offset, (size_t)view.len);
    Py_ssize_t length = view.len;
    PyBuffer_Release(&view);
    if (!done)
        Py_RETURN_NONE;
    return PyLong_FromSsize_t(length);
}

/* Which way a store of the loop thread takes. For a worker's store, way_of in write.c decides. */
enum inline_way {
    WAY_WORKER,      /* it would wait: a page is not in memory, or our flush is writing it, which
                        makes a store wait for milliseconds (docs/decisions.md) */
    WAY_WITHOUT_GIL, /* it may wait: the first store to a clean page enters the file system, which may
                        be frozen, or wait for its journal or its own write-back. Nothing tells
                        whether the kernel has made a page clean. */
    WAY_WITH_GIL,    /* no file system is involved: the pages are private, or on tmpfs */
};

static enum inline_way way_of_inline(Mapping *self, int64_t offset, int64_t length, int64_t now)
{
    size_t first, end;
    int64_t stop = offset + length;
    if (runs_overlap(offset, stop, self->writeback_start, self->writeback_end) ||
        runs_overlap(offset, stop, self->queued_start, self->queued_end)) /* I9 */
        return WAY_WORKER;
    pages_of(offset, length, &first, &end);
    bool ready = pages_are_ready(self, first, end, now);
    if (ready && (self->private_copy || self->in_memory))
        return WAY_WITH_GIL;
    if (ready || region_is_resident(self->region, (size_t)offset, (size_t)length))
        return WAY_WITHOUT_GIL;
    return WAY_WORKER;
}

/* Whether the flush policy wants to be asked about this store. */
static bool meets_limit(const Mapping *self, int64_t offset, int64_t length)
{
    const struct inline_limits *limits = &self->inline_limits;
    if (self->written_bytes + (uint64_t)length >= limits->bytes ||
        self->sequence + 1 >= limits->sequence)
        return true;
    if (limits->pages == NO_LIMIT)
        return false;
    size_t first, end;
    pages_of(offset, length, &first, &end);
    return self->dirty.members + self->writeback_pages + pages_missing(&self->dirty, first, end) >
           limits->pages;
}

/* The receipt, None when the store has to take the slow way, or NULL with MemoryError. A store for
 * which the policy was `asked` before is bound neither by the time slice nor by the inline limits. */
static PyObject *store_now(Mapping *self, int64_t offset, const Py_buffer *data, bool asked)
{
    int64_t now = monotonic_clock();
    if (!range_is_valid(offset, data->len, self->reach) ||
        (size_t)data->len > INLINE_WRITE_LIMIT_BYTES)
        Py_RETURN_NONE;
    if (!asked && !slice_allows(self, now))
        Py_RETURN_NONE;
    if (data->len == 0)
        return receipt_make(self, offset, 0, self->sequence);
    if (!asked && meets_limit(self, offset, data->len))
        Py_RETURN_NONE;
    enum inline_way way = way_of_inline(self, offset, data->len, now);
    if (way == WAY_WORKER) {
        self->counters.fell_back_writes += asked; /* any other is asked about right after */
        Py_RETURN_NONE;
    }
    struct pin pin = {0};
    size_t length = (size_t)data->len, copied;
    /* SAFETY: the buffer is exported to us, the region is held. */
    if (way == WAY_WITH_GIL)
        copied = region_copy_in(self->region, (size_t)offset, data->buf, length);
    else
        WITHOUT_GIL(pin, self,
                    copied = region_copy_in(pin.region, (size_t)offset, data->buf, length););
    bool whole = copied == length;
    if (!account_store(self, offset, copied, whole && !pin.moved, now))
        return PyErr_NoMemory();
    self->counters.faults += !whole;
    if (!whole || pin.moved) /* what may have been cut off meanwhile is stored once more (mapping.2) */
        Py_RETURN_NONE;
    self->counters.inline_writes_done++;
    return receipt_make(self, offset, data->len, account_write(self));
}

static PyObject *write_now(Mapping *self, PyObject *const *args, Py_ssize_t count, bool asked)
{
    int64_t offset;
    Py_buffer data;
    if (count != 2 || !parse_integer(args[0], &offset))
        Py_RETURN_NONE;
    if (!buffer_take(args[1], &data, false)) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    PyObject *receipt = self->inline_writes && mapping_is_usable(self) /* after the buffer (mapping.2) */
                            ? store_now(self, offset, &data, asked)
                            : Py_NewRef(Py_None);
    PyBuffer_Release(&data);
    return receipt;
}

PyObject *mapping_write_inline(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    return write_now(self, args, count, false);
}

PyObject *mapping_write_now(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    return write_now(self, args, count, true);
}

/* Bytes neither change nor move. Other memory is exported until the write is over. */
PyObject *mapping_stage(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t offset;
    if (!self->writable || count != 2 || !parse_integer(args[0], &offset))
        Py_RETURN_NONE;
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    PyObject *data = buffer_export(state->export_type, args[1], false), *store;
    if (!data) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    if (mapping_is_usable(self) &&
        range_is_valid(offset, PyObject_Size(data), self->reach))
        store = PyTuple_Pack(2, args[0], data);
    else
        store = Py_NewRef(Py_None);
    Py_DECREF(data);
    return store;
}

PyObject *mapping_set_inline_limits(Mapping *self, PyObject *args)
{
    unsigned long long bytes, sequence, dirty;
    if (!PyArg_ParseTuple(args, "KKK:set_inline_limits", &bytes, &sequence, &dirty))
        return NULL;
    uint64_t pages = dirty == NO_LIMIT ? NO_LIMIT : dirty / page_size();
    self->inline_limits = (struct inline_limits){.bytes = bytes, .sequence = sequence, .pages = pages};
    Py_RETURN_NONE;
}

PyObject *mapping_set_queued(Mapping *self, PyObject *args)
{
    long long start, end;
    if (!PyArg_ParseTuple(args, "LL:set_queued", &start, &end))
        return NULL;
    self->queued_start = start;
    self->queued_end = end;
    Py_RETURN_NONE;
}

PyObject *mapping_set_locked(Mapping *self, PyObject *ranges)
{
    if (!PyList_CheckExact(ranges))
        return PyErr_Format(PyExc_TypeError, "set_locked needs a list of (offset, end)");
    Py_ssize_t count = 0;
    struct run *runs = runs_of(ranges, &count);
    if (!runs)
        return NULL;
    PyMem_Free(self->locked.runs);
    self->locked = (struct spans){.runs = runs, .count = (size_t)count};
    Py_RETURN_NONE;
}
