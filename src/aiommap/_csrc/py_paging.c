/* py_paging.c: which pages are in memory, and verbs that change that. */
#include "py_mapping.h"

#include <errno.h>

PyObject *mapping_populate(Mapping *self, PyObject *args)
{
    long long offset, length;
    int write;
    if (!PyArg_ParseTuple(args, "LLp:populate", &offset, &length, &write) ||
        !mapping_range(self, offset, length))
        return NULL;
    if (length == 0)
        return PyLong_FromLong(0);
    struct hold hold;
    ssize_t done;
    WITHOUT_GIL(hold, self,
                done = region_populate(hold.region, (size_t)offset, (size_t)length, write););
    if (done < 0)
        return os_error((int)-done);
    size_t first, end;
    if (write && pages_of(offset, done, &first, &end) && /* the kernel made them dirty */
        (!pages_insert(&self->ready, first, end) ||
         !mapping_dirty(self, first, end, slice_clock())))
        return PyErr_NoMemory();
    return PyLong_FromSsize_t(done);
}

PyObject *mapping_advise(Mapping *self, PyObject *args)
{
    long long offset, length;
    int advice, error = 0;
    if (!PyArg_ParseTuple(args, "LLi:advise", &offset, &length, &advice) ||
        !mapping_range(self, offset, length))
        return NULL;
    struct hold hold;
    if (length)
        WITHOUT_GIL(hold, self, error = region_advise(hold.region, (size_t)offset,
                                                      (size_t)length, advice););
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

/* Runs of resident pages, gathered from one window of mincore(2) flags after the other. */
struct residency { /* the caller's own */
    PyObject *runs; /* list of (offset, end) */
    size_t resident;
    int64_t run_start; /* -1 outside a run */
    int64_t offset, end; /* what was asked for: runs are clipped to it */
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
        struct hold hold;
        WITHOUT_GIL(hold, self, error = region_mincore(hold.region, (size_t)at, (size_t)span,
                                                       flags););
        if (error) {
            os_error(error);
            return false;
        }
        if (!add_flags(found, at, flags, pages_for(span)))
            return false;
        at += span;
        if (!mapping_check(self)) /* closed while the GIL was away */
            return false;
    }
    return close_run(found, found->end);
}

PyObject *mapping_residency(Mapping *self, PyObject *args)
{
    long long offset, length;
    if (!parse_range(self, args, &offset, &length))
        return NULL;
    struct residency found = {
        .runs = PyList_New(0), .run_start = -1, .offset = offset, .end = offset + length};
    unsigned char *flags = PyMem_Malloc(WINDOW_PAGES);
    size_t first, end;
    size_t total = pages_of(offset, length, &first, &end) ? end - first : 0;
    PyObject *result = NULL;
    if (!flags)
        PyErr_NoMemory();
    else if (found.runs && (length == 0 || scan(self, &found, flags)))
        result = Py_BuildValue("(nnO)", (Py_ssize_t)found.resident, (Py_ssize_t)total,
                               found.runs);
    PyMem_Free(flags);
    Py_XDECREF(found.runs);
    return result;
}

PyObject *mapping_cachestat(Mapping *self, PyObject *args)
{
    long long offset, length;
    if (!parse_range(self, args, &offset, &length))
        return NULL;
    struct hold hold;
    struct cache_counts counts = {0};
    int error = 0;
    if (length) /* to cachestat(2) length 0 would mean "to the end" */
        WITHOUT_GIL(hold, self, error = file_cachestat(hold.fd, (uint64_t)offset,
                                                       (uint64_t)length, &counts););
    if (error)
        return os_error(error);
    return Py_BuildValue("(KKKKK)", (unsigned long long)counts.cached,
                         (unsigned long long)counts.dirty, (unsigned long long)counts.writeback,
                         (unsigned long long)counts.evicted,
                         (unsigned long long)counts.recently_evicted);
}
