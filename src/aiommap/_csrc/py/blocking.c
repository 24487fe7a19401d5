/* blocking.c: reads and other calls on the file that worker threads make; they may wait, without
 * the GIL (I2).
 *
 * A verb that copies returns how much it copied. A number below the request means a fault, and the
 * caller finds out why. Errors of system calls are raised as OSError.
 */
#include "blocking.h"

#include <errno.h>
#include <limits.h>

#include "pin.h"

/* No errno number is this large. */
enum { GONE = INT_MIN };

/* Fill `to` from the file, or from the mapping where only the mapping has the bytes. Returns how many
 * bytes, or a negative errno number, or GONE with an exception when the file no longer has the range. */
static ssize_t read_waiting(Mapping *self, char *to, int64_t offset, size_t length)
{
    struct pin pin;
    ssize_t got;
    size_t first, end;
    enum meanwhile meanwhile;
    pages_of(offset, (int64_t)length, &first, &end);
    do {
        if (self->private_copy && pages_has_any(&self->dirty, first, end))
            WITHOUT_GIL(pin, self,
                        got = (ssize_t)region_copy_out(pin.region, (size_t)offset, to, length););
        else
            WITHOUT_GIL(pin, self, got = file_read_own(pin.fd, to, length, (off_t)offset););
        if (got == (ssize_t)length)
            return got;
        meanwhile = pin_meanwhile(&pin, offset, (int64_t)length);
    } while (meanwhile == RANGE_MOVED);
    if (meanwhile == RANGE_GONE)
        return GONE;
    self->counters.faults += got >= 0;
    return got;
}

/* The exception for what read_waiting could not read. */
static PyObject *refused(ssize_t got)
{
    return got == GONE ? NULL : os_error((int)-got);
}

PyObject *mapping_read(Mapping *self, PyObject *args)
{
    long long offset, length;
    if (!PyArg_ParseTuple(args, "LL:read", &offset, &length) ||
        !mapping_range(self, offset, length))
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!bytes || length == 0)
        return bytes;
    ssize_t got = read_waiting(self, PyBytes_AsString(bytes), offset, (size_t)length);
    if (got < 0) {
        Py_DECREF(bytes);
        return refused(got);
    }
    if (got == length)
        return bytes;
    PyObject *part = PyBytes_FromStringAndSize(PyBytes_AsString(bytes), got);
    Py_DECREF(bytes);
    return part;
}

PyObject *mapping_read_into(Mapping *self, PyObject *args)
{
    long long offset;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "Lw*:read_into", &offset, &view))
        return NULL;
    ssize_t got = 0;
    bool valid = mapping_range(self, offset, view.len);
    if (valid && view.len)
        got = read_waiting(self, view.buf, offset, (size_t)view.len);
    PyBuffer_Release(&view);
    if (!valid)
        return NULL;
    return got < 0 ? refused(got) : PyLong_FromSsize_t(got);
}

PyObject *mapping_sync(Mapping *self, PyObject *args)
{
    int metadata, error;
    if (!PyArg_ParseTuple(args, "p:sync", &metadata) || !mapping_check(self))
        return NULL;
    struct pin pin;
    WITHOUT_GIL(pin, self, error = file_sync(pin.fd, metadata););
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

PyObject *mapping_stat(Mapping *self, PyObject *Py_UNUSED(unused))
{
    int error;
    struct pin pin;
    struct file_stat found;
    if (!mapping_check(self))
        return NULL;
    WITHOUT_GIL(pin, self, error = file_stat(pin.fd, &found););
    if (error)
        return os_error(error);
    return Py_BuildValue("(LK)", (long long)found.size, (unsigned long long)found.links);
}

/* A verb that makes one call on a range of the mapping or of the descriptor. For length 0 it makes
 * none: to several system calls 0 means "to the end". If there was a change meanwhile, the verb
 * repeats a call that failed, and a call that locks pages even if it did not fail. */
#define RANGE_VERB(name, locks, call)                                                             \
    PyObject *name(Mapping *self, PyObject *args)                                                 \
    {                                                                                             \
        long long offset, length;                                                                 \
        int error = 0;                                                                            \
        struct pin pin;                                                                         \
        enum meanwhile meanwhile;                                                                 \
        if (!parse_range(self, args, &offset, &length))                                           \
            return NULL;                                                                          \
        do {                                                                                      \
            meanwhile = RANGE_SAME;                                                               \
            if (length == 0)                                                                      \
                break;                                                                            \
            WITHOUT_GIL(pin, self, error = call;);                                               \
            if (error || ((locks) && pin.moved))                                                  \
                meanwhile = pin_meanwhile(&pin, offset, length);                       \
        } while (meanwhile == RANGE_MOVED);                                                       \
        if (meanwhile == RANGE_GONE)                                                              \
            return NULL;                                                                          \
        if (error)                                                                                \
            return os_error(error);                                                               \
        Py_RETURN_NONE;                                                                           \
    }

/* Where msync(2) is refused to the process, sync the whole file instead. */
static int sync_range(const struct pin *pin, size_t offset, size_t length)
{
    int error = region_sync(pin->region, offset, length);
    return error == ENOSYS ? file_sync(pin->fd, false) : error;
}

RANGE_VERB(mapping_sync_range, false, sync_range(&pin, (size_t)offset, (size_t)length))
RANGE_VERB(mapping_start_writeback, false,
           file_start_writeback(pin.fd, (off_t)offset, (off_t)length))
RANGE_VERB(mapping_read_ahead, false, file_read_ahead(pin.fd, (off_t)offset, (size_t)length))
RANGE_VERB(mapping_punch_hole, false, file_punch_hole(pin.fd, (off_t)offset, (off_t)length))
RANGE_VERB(mapping_lock, true, region_lock(pin.region, (size_t)offset, (size_t)length, false))
RANGE_VERB(mapping_lock_later, true, region_lock(pin.region, (size_t)offset, (size_t)length, true))
RANGE_VERB(mapping_unlock, true, region_unlock(pin.region, (size_t)offset, (size_t)length))
