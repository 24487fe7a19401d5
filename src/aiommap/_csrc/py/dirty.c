/* dirty.c: what is dirty, what a flush in flight covers, what waits for a worker. */
#include "mapping.h"

bool mapping_ready(Mapping *self, size_t first, size_t end)
{
    return pages_insert(&self->ready, first, end < self->pages ? end : self->pages);
}

bool mapping_dirty(Mapping *self, size_t first, size_t end, int64_t now)
{
    if (end > self->pages)
        end = self->pages;
    if (!self->dirty.members && first < end)
        self->dirty_since = now;
    return pages_insert(&self->dirty, first, end);
}

void mapping_count(Mapping *self, int64_t offset, size_t stored)
{
    int64_t end = offset + (int64_t)stored;
    self->written_bytes += stored;
    if (end > self->size) /* cut off since */
        end = self->size;
    if (stored && end > self->min_kept_length)
        self->min_kept_length = end;
}

bool mapping_stored(Mapping *self, int64_t offset, size_t stored, bool ready, int64_t now)
{
    size_t first, end;
    if (!pages_of(offset, (int64_t)stored, &first, &end))
        return true;
    if (ready && !mapping_ready(self, first, end))
        return false;
    mapping_count(self, offset, stored);
    return mapping_dirty(self, first, end, now);
}

bool mapping_absorb_leases(Mapping *self)
{
    int64_t now = monotonic_clock();
    mapping_size(self);
    for (Lease *lease = self->leases; lease; lease = lease->next) {
        int64_t left = self->size - lease->offset;
        int64_t length = lease->length < left ? lease->length : left;
        size_t first, end;
        if (lease->writable && length > 0 && pages_of(lease->offset, length, &first, &end) &&
            !mapping_dirty(self, first, end, now))
            return false;
    }
    return true;
}

PyObject *list_of_runs(const struct run *runs, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *item =
            Py_BuildValue("(LL)", (long long)runs[i].start, (long long)runs[i].end);
        if (!item)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, i, item);
    }
    return list;
}

/* Dirty runs in pages [first, end) as byte ranges, the last one clipped to the size; for PyMem_Free.
 * In C at first, because making Python objects can run code that stores to the file. */
static struct run *collect_runs(Mapping *self, size_t first, size_t end, Py_ssize_t *count)
{
    size_t start, stop, page = page_size(), at = first;
    *count = 0;
    while (pages_next_run(&self->dirty, at, end, &start, &stop)) {
        ++*count;
        at = stop;
    }
    struct run *runs = PyMem_Calloc((size_t)*count + 1, sizeof *runs);
    at = first;
    for (Py_ssize_t i = 0; runs && i < *count; i++) {
        pages_next_run(&self->dirty, at, end, &start, &stop);
        int64_t limit = (int64_t)(stop * page) < self->size ? (int64_t)(stop * page) : self->size;
        runs[i] = (struct run){(int64_t)(start * page), limit};
        at = stop;
    }
    return runs;
}

void mapping_begin_writeback(Mapping *self, size_t first, size_t end)
{
    size_t page = page_size();
    self->writeback_pages += end - first - pages_missing(&self->dirty, first, end);
    if (!self->writeback_since)
        self->writeback_since = self->dirty_since;
    pages_remove(&self->dirty, first, end);
    pages_remove(&self->ready, first, end); /* write-back makes the pages read-only again */
    if (!self->dirty.members)
        self->dirty_since = 0;
    int64_t start = (int64_t)(first * page), stop = (int64_t)(end * page);
    bool idle = self->writeback_start >= self->writeback_end;
    self->writeback_start = idle || start < self->writeback_start ? start : self->writeback_start;
    self->writeback_end = idle || stop > self->writeback_end ? stop : self->writeback_end;
}

PyObject *mapping_flush_begin(Mapping *self, PyObject *args)
{
    long long offset, length;
    size_t first, end;
    Py_ssize_t count;
    if (!parse_range(self, args, &offset, &length))
        return NULL;
    if (!pages_of(offset, length, &first, &end))
        return PyList_New(0);
    struct run *runs = mapping_absorb_leases(self) ? collect_runs(self, first, end, &count) : NULL;
    if (!runs)
        return PyErr_NoMemory();
    if (count)
        mapping_begin_writeback(self, first, end);
    PyObject *list = list_of_runs(runs, count);
    if (!list) /* nothing will be written: all of it is dirty as before */
        for (Py_ssize_t i = 0; i < count; i++)
            if (pages_of(runs[i].start, runs[i].end - runs[i].start, &first, &end))
                mapping_dirty(self, first, end, self->writeback_since);
    PyMem_Free(runs);
    return list;
}

/* Take [(start, end), ...] in, for PyMem_Free. In C at first, because reading Python objects can run
 * code, which may change the list, and the mapping. NULL with an exception. */
static struct run *runs_of(PyObject *list, Py_ssize_t *count)
{
    PyObject *items = PyList_AsTuple(list);
    if (!items)
        return NULL;
    *count = PyTuple_Size(items);
    struct run *runs = PyMem_Calloc((size_t)*count + 1, sizeof *runs);
    if (!runs)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; runs && i < *count; i++) {
        long long start, end;
        if (!PyArg_ParseTuple(PyTuple_GetItem(items, i), "LL", &start, &end)) {
            PyMem_Free(runs);
            runs = NULL;
        } else {
            runs[i] = (struct run){start, end};
        }
    }
    Py_DECREF(items);
    return runs;
}

static bool mark_dirty(Mapping *self, const struct run *runs, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        int64_t offset = runs[i].start, end = runs[i].end;
        size_t first, stop;
        end = end < self->size ? end : self->size;
        if (offset >= 0 && offset < end && pages_of(offset, end - offset, &first, &stop) &&
            !mapping_dirty(self, first, stop, self->writeback_since)) {
            PyErr_NoMemory();
            return false;
        }
    }
    return true;
}

void mapping_end_writeback(Mapping *self)
{
    self->writeback_start = self->writeback_end = 0;
    self->writeback_pages = 0;
    self->writeback_since = 0;
}

PyObject *mapping_flush_end(Mapping *self, PyObject *failed)
{
    if (!PyList_CheckExact(failed))
        return PyErr_Format(PyExc_TypeError, "flush_end needs the list of runs that failed");
    Py_ssize_t count = 0;
    struct run *runs = runs_of(failed, &count);
    bool marked = runs && mark_dirty(self, runs, count);
    PyMem_Free(runs);
    mapping_end_writeback(self);
    if (!marked)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *mapping_dirty_runs(Mapping *self, PyObject *Py_UNUSED(unused))
{
    Py_ssize_t count;
    struct run *runs =
        mapping_absorb_leases(self) ? collect_runs(self, 0, self->dirty.count, &count) : NULL;
    if (!runs)
        return PyErr_NoMemory();
    PyObject *list = list_of_runs(runs, count);
    PyMem_Free(runs);
    return list;
}

PyObject *mapping_dirty_bytes(Mapping *self, PyObject *Py_UNUSED(unused))
{
    if (!mapping_absorb_leases(self))
        return PyErr_NoMemory();
    return PyLong_FromSize_t(self->dirty.members * page_size());
}

/* How much would be dirty or being flushed if a range were stored to. */
PyObject *mapping_would_dirty(Mapping *self, PyObject *args)
{
    long long offset, length;
    size_t first, end, pages = self->dirty.members + self->writeback_pages;
    if (!parse_range(self, args, &offset, &length))
        return NULL;
    if (pages_of(offset, length, &first, &end))
        pages += pages_missing(&self->dirty, first, end);
    return PyLong_FromSize_t(pages * page_size());
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
