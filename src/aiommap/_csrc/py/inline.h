/* inline.h: the reading verbs of the loop thread, and what bounds all its verbs.
 *
 * Each returns None when it cannot answer at once; then nothing has happened, and the caller takes
 * the slow way, which also raises the error if there is one.
 */
#ifndef AIOMMAP_PY_INLINE_H
#define AIOMMAP_PY_INLINE_H

#include "mapping.h"

#include "../sys/clock.h"

/* Copies up to this size are cheaper than letting the GIL go and getting it back (I2). */
#define GIL_COPY_LIMIT_BYTES ((size_t)64 << 10)

/* The value of a plain integer that fits; or false. */
static inline bool parse_integer(PyObject *object, int64_t *value)
{
    if (!PyLong_Check(object))
        return false;
    int overflow;
    *value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
}

/* Whether this is the thread of the file's loop. The address of its time slice tells it from any
 * other thread alive. A mapping that nobody has attached belongs to no thread. */
static inline bool is_loop_thread(const Mapping *self)
{
    return self->loop_slice == &thread_time_slice || !self->loop_slice;
}

/* Whether it is that thread, within its time slice. */
static inline bool slice_allows(const Mapping *self, int64_t now)
{
    return is_loop_thread(self) && !time_slice_is_spent(&thread_time_slice, now);
}

/* Whether an inline read may find the range in memory, so that trying it in a new time slice is
 * worth a turn of the loop. */
bool inline_read_seems_warm(Mapping *self, int64_t offset, int64_t length);

PyObject *mapping_read_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_read_into_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_read_nowait(Mapping *self, PyObject *const *args, Py_ssize_t count);

PyObject *mapping_set_locked(Mapping *self, PyObject *args);

#endif
