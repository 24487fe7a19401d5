/* inline.h: the verbs of the loop thread, and what bounds them.
 *
 * Each returns None when it cannot answer at once; then nothing has happened, and the caller
 * takes the slow way, which also forms the error if there is one to form. Reads are in inline.c,
 * stores in inline_write.c.
 */
#ifndef AIOMMAP_PY_INLINE_H
#define AIOMMAP_PY_INLINE_H

#include "mapping.h"
#include "pin.h"

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

/* Whether it is, within its time slice. */
static inline bool slice_allows(const Mapping *self, int64_t now)
{
    return is_loop_thread(self) && !time_slice_is_spent(&thread_time_slice, now);
}

/* Whether an inline read may find the range in memory, so that it is worth a turn of the loop to try it
 * within a new time slice. */
bool inline_read_seems_warm(Mapping *self, int64_t offset, int64_t length);

/* Whether a store of the loop thread would be a pwrite(2). */
bool inline_is_pwrite(Mapping *self, int64_t offset, int64_t length, int64_t now);
/* Without the GIL. Whether pwrite(2) need not read a page from the disk, nor find it full half-way. A
 * store of one page is applied whole or not at all. One of several pages has to find the blocks of all.
 * Pages that are known to be in memory need not be asked about, and what was found out is told. */
bool pwrite_is_inline(const struct pin *pin, int64_t offset, int64_t end, bool *cached);

/* Whether pwrite(2) waits on the loop thread. */
struct pwrite_watch { /* the caller's own */
    int suspected;    /* one was slow: so many more are looked at */
    bool watched;     /* one took long: whether another sleeps is looked at */
    bool was_long, waited;
    /* Of one call. */
    bool looks;
    long waits;
    int64_t begun, ran; /* the monotonic clock, and the thread's */
};
struct pwrite_watch pwrite_watch(const Mapping *self, int64_t now);
/* Around each call and what is asked before it, without the GIL; `now` of the monotonic clock. */
void pwrite_watch_begin(struct pwrite_watch *watch, int64_t now);
void pwrite_watch_end(struct pwrite_watch *watch, size_t bytes);
void pwrite_watch_note(Mapping *self, const struct pwrite_watch *watch);

PyObject *mapping_read_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_read_into_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_read_nowait(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_write_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_write_now(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_stage(Mapping *self, PyObject *const *args, Py_ssize_t count);

PyObject *mapping_set_inline_limits(Mapping *self, PyObject *args);
PyObject *mapping_set_queued(Mapping *self, PyObject *args);
PyObject *mapping_set_locked(Mapping *self, PyObject *args);

#endif
