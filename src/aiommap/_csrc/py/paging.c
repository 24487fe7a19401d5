/* paging.c: which pages are in memory, and verbs that change that. */
#include "paging.h"

#include <errno.h>

#include "accounting.h"
#include "pin.h"

#include "../sys/clock.h"
#include "../sys/full_disk.h"

/* Allocate blocks for a range whose pages faulted. Returns RANGE_MOVED if there are blocks now.
 * *reason is the errno number that a further fault means, or that says why there are no blocks. */
static enum meanwhile fill(Mapping *self, int64_t offset, int64_t length, int *reason)
{
    int64_t span = length < (int64_t)PIECE_BYTES ? length : (int64_t)PIECE_BYTES;
    int error = EAGAIN;
    struct pin pin;
    while (error == EAGAIN)
        WITHOUT_GIL(pin, self, error = growth_fill(&self->growth, offset, span, reason););
    if (!error)
        return RANGE_MOVED;
    *reason = error;
    return RANGE_SAME;
}

PyObject *mapping_populate(Mapping *self, PyObject *args)
{
    long long offset, length;
    int write;
    if (!PyArg_ParseTuple(args, "LLp:populate", &offset, &length, &write) ||
        !mapping_range(self, offset, length))
        return NULL;
    if (length == 0)
        return PyLong_FromLong(0);
    struct pin pin;
    ssize_t done;
    enum meanwhile meanwhile;
    int reason = 0; /* why the range has no blocks; EFAULT unless the disk is full */
    do {
        WITHOUT_GIL(pin, self,
                    done = region_populate(pin.region, (size_t)offset, (size_t)length, write););
        meanwhile = done < 0 ? pin_meanwhile(&pin, offset, length) : RANGE_SAME;
        if (done == -EFAULT && meanwhile == RANGE_SAME && write && !self->private_copy && !reason)
            meanwhile = fill(self, offset, length, &reason);
    } while (meanwhile == RANGE_MOVED);
    if (meanwhile == RANGE_GONE)
        return NULL;
    if (done == -EFAULT && is_full(reason))
        return os_error(reason);
    if (done < 0)
        return os_error((int)-done);
    size_t first, end;
    int64_t now = monotonic_clock();
    account_refresh(self, now);
    if (write && pages_of(offset, done, &first, &end) && /* the kernel made them dirty */
        ((!pin.moved && !account_present(self, first, end, PRESENCE_READY)) ||
         !account_dirty(self, first, end, now)))
        return PyErr_NoMemory();
    return PyLong_FromSsize_t(done);
}

PyObject *mapping_advise(Mapping *self, PyObject *args)
{
    long long offset, length;
    int advice, error;
    if (!PyArg_ParseTuple(args, "LLi:advise", &offset, &length, &advice) ||
        !mapping_range(self, offset, length))
        return NULL;
    if (length == 0)
        Py_RETURN_NONE;
    struct pin pin;
    enum meanwhile meanwhile;
    do { /* a new region needs the advice as well */
        WITHOUT_GIL(pin, self, error = region_advise(pin.region, (size_t)offset,
                                                      (size_t)length, advice););
        meanwhile = pin_meanwhile(&pin, offset, length);
    } while (meanwhile == RANGE_MOVED);
    if (meanwhile == RANGE_GONE)
        return NULL;
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

/* Runs of resident pages, collected from one window of mincore(2) flags after the other. */
struct residency { /* the caller's own */
    PyObject *runs; /* list of (offset, end) */
    size_t resident;
    int64_t run_start; /* -1 outside a run */
    int64_t offset, end; /* the range asked for: runs are clipped to it */
};

static bool close_run(struct residency *found, int64_t stop)
{
    if (found->run_start < 0)
        return true;
    int64_t start = found->run_start > found->offset ? found->run_start : found->offset;
    PyObject *run = Py_BuildValue("(LL)", (long long)start,
                                  (long long)(stop < found->end ? stop : found->end));
    found->run_start = -1;
    bool kept = run && PyList_Append(found->runs, run) == 0;
    Py_XDECREF(run);
    return kept;
}

static bool add_flags(struct residency *found, int64_t at, const unsigned char *flags,
                      size_t pages)
{
    int64_t page = (int64_t)page_size();
    for (size_t i = 0; i < pages; i++, at += page) {
        if (flags[i] & 1) {
            found->resident++;
            if (found->run_start < 0)
                found->run_start = at;
        } else if (!close_run(found, at)) {
            return false;
        }
    }
    return true;
}

enum { WINDOW_PAGES = 16384 };

static bool scan(Mapping *self, struct residency *found, unsigned char *flags)
{
    int64_t page = (int64_t)page_size(), at = found->offset - found->offset % page;
    while (at < found->end) {
        int64_t span = found->end - at;
        if (span > WINDOW_PAGES * page)
            span = WINDOW_PAGES * page;
        int error;
        struct pin pin;
        WITHOUT_GIL(pin, self, error = region_mincore(pin.region, (size_t)at, (size_t)span,
                                                       flags););
        enum meanwhile meanwhile =
            pin_meanwhile(&pin, found->offset, found->end - found->offset);
        if (meanwhile == RANGE_MOVED)
            continue;
        if (meanwhile == RANGE_GONE)
            return false;
        if (error) {
            os_error(error);
            return false;
        }
        /* Making objects may run Python code (mapping.2). */
        if (!add_flags(found, at, flags, pages_for(span)) ||
            !mapping_range(self, found->offset, found->end - found->offset))
            return false;
        at += span;
    }
    return close_run(found, found->end);
}

PyObject *mapping_residency(Mapping *self, PyObject *args)
{
    long long offset, length;
    size_t first, end;
    PyObject *result = NULL, *runs = PyList_New(0); /* before the check (mapping.2) */
    struct residency found = {.runs = runs, .run_start = -1};
    unsigned char *flags = PyMem_Malloc(WINDOW_PAGES);
    if (!flags)
        PyErr_NoMemory();
    else if (runs && parse_range(self, args, &offset, &length)) {
        size_t total = pages_of(offset, length, &first, &end) ? end - first : 0;
        found.offset = offset;
        found.end = offset + length;
        if (length == 0 || scan(self, &found, flags))
            result = Py_BuildValue("(nnO)", (Py_ssize_t)found.resident, (Py_ssize_t)total, runs);
    }
    PyMem_Free(flags);
    Py_XDECREF(found.runs);
    return result;
}

PyObject *mapping_cachestat(Mapping *self, PyObject *args)
{
    long long offset, length;
    if (!parse_range(self, args, &offset, &length))
        return NULL;
    struct pin pin;
    struct cache_counts counts = {0};
    int error = 0;
    if (length) /* to cachestat(2) length 0 would mean "to the end" */
        WITHOUT_GIL(pin, self, error = file_cachestat(pin.fd, (uint64_t)offset,
                                                       (uint64_t)length, &counts););
    if (error)
        return os_error(error);
    return Py_BuildValue("(KKKKK)", (unsigned long long)counts.cached,
                         (unsigned long long)counts.dirty, (unsigned long long)counts.writeback,
                         (unsigned long long)counts.evicted,
                         (unsigned long long)counts.recently_evicted);
}
