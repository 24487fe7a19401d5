/* inline.c: reads of the loop thread. They never wait for a disk (I1). */
#include "inline.h"

#include <errno.h>

#include "accounting.h"
#include "buffer.h"
#include "pin.h"
#include "pool_object.h"

#include "../sys/clock.h"

/* A read of this size stops the loop for about 0.2 ms; longer ones go to a worker. */
#define INLINE_READ_LIMIT_BYTES ((size_t)1 << 20)
/* From here on mincore(2) and a guarded copy are faster than preadv2(2): docs/decisions.md. */
#define MAPPED_READ_BYTES ((size_t)32 << 10)
/* After a cold read this many more may be cold, too. */
#define SUSPICIOUS_READS 16u
/* After this many answers in a row that a range of a file is not in memory, one read in
 * READS_AN_ANSWER asks. */
#define COLD_ANSWERS 16u
#define READS_AN_ANSWER 8u
/* Residency is checked again for every piece, so that a check is never older than about 20 us. */
#define MAPPED_READ_PIECE_BYTES ((size_t)256 << 10)

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

/* Whether to take a range for cold without asking. With many reads in flight, asking each time
 * about a file that is cold throughout takes a tenth of the loop thread's time. */
static bool is_taken_for_cold(Mapping *self)
{
    return thread_cold_reads >= COLD_READS_FEW && self->cold_answers >= COLD_ANSWERS &&
           ++self->unasked_reads % READS_AN_ANSWER;
}

/* Whether a range is in memory, as far as is known. */
static bool seems_resident(Mapping *self, int64_t offset, size_t length)
{
    if (is_taken_for_cold(self))
        return false;
    bool resident = region_is_resident(self->region, (size_t)offset, length);
    if (resident) {
        self->cold_answers = 0;
    } else {
        self->suspicious = SUSPICIOUS_READS;
        self->cold_answers += self->cold_answers < COLD_ANSWERS;
    }
    return resident;
}

/* Whether to try a read through the descriptor. With many reads in flight, or with a few if this
 * file may be cold, only if its pages are in memory (py/pool_object.h). */
static bool may_probe(Mapping *self, int64_t offset, size_t length, size_t few)
{
    if (self->in_memory || thread_cold_reads < (self->suspicious ? few : COLD_READS_MANY))
        return true;
    if (!mapping_sees_residency(self) || !mapping_is_current(self))
        return thread_cold_reads < COLD_READS_MANY;
    return seems_resident(self, offset, length);
}

bool inline_read_seems_warm(Mapping *self, int64_t offset, int64_t length)
{
    return may_probe(self, offset, (size_t)length, 0);
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
    if (got == (ssize_t)length) {
        self->suspicious -= self->suspicious > 0;
        self->cold_answers = 0;
        return !pin.moved;
    }
    self->suspicious = SUSPICIOUS_READS;
    if (got == -EOPNOTSUPP || got == -EPERM || got == -ENOSYS)
        self->nowait = false; /* this file system, sandbox or kernel has no NOWAIT reads */
    return false;
}

/* True when `length` bytes were read without waiting. Needs a valid range. */
static bool read_now(Mapping *self, char *to, int64_t offset, size_t length)
{
    size_t first, end;
    if (!pages_of(offset, (int64_t)length, &first, &end))
        return true;
    if (pages_are_locked(self, first, end) && mapping_is_current(self))
        return copy_present(self, to, offset, length);
    if (self->private_copy) {
        /* Private pages are not in the file: only the mapping has them. */
        if (pages_has_any(&self->dirty, first, end))
            return mapping_sees_residency(self) && mapping_is_current(self) &&
                   read_mapped(self, to, offset, length);
    }
    if (!self->nowait && !self->in_memory)
        return false;
    if (length >= MAPPED_READ_BYTES && mapping_sees_residency(self) && mapping_is_current(self))
        return read_mapped(self, to, offset, length);
    return may_probe(self, offset, length, COLD_READS_FEW) && read_cached(self, to, offset, length);
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
    /* Garbage collection does not track bytes, so making them runs no Python code (mapping.2). */
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
    bool done = mapping_is_usable(self) && /* after the export (mapping.2) */
                range_is_valid(offset, view.len, self->reach) &&
                (size_t)view.len <= INLINE_READ_LIMIT_BYTES &&
                read_counted(self, view.buf, offset, (size_t)view.len);
    Py_ssize_t length = view.len;
    PyBuffer_Release(&view);
    if (!done)
        Py_RETURN_NONE;
    return PyLong_FromSsize_t(length);
}

PyObject *mapping_set_locked(Mapping *self, PyObject *args)
{
    size_t first, end;
    long long offset, length, room = (long long)(self->locked.count << page_shift);
    int locked;
    if (!PyArg_ParseTuple(args, "LLp:set_locked", &offset, &length, &locked))
        return NULL;
    if (!range_is_valid(offset, length, room))
        return PyErr_Format(PyExc_ValueError, "%lld bytes at %lld were never mapped", length, offset);
    if (pages_of(offset, length, &first, &end))
        account_locked(self, first, end, locked);
    Py_RETURN_NONE;
}
