#include "flush.h"

#include "accounting.h"
#include "lease.h"

/* Dirty runs in pages [first, end) as byte ranges, the last one clipped to the size; for PyMem_Free.
 * In C at first, because to make Python objects can run code that stores to the file. */
static struct run *collect_runs(Mapping *self, size_t first, size_t end, Py_ssize_t *count)
{
    size_t start, stop, at = first;
    *count = 0;
    while (pages_next_run(&self->dirty, at, end, &start, &stop)) {
        ++*count;
        at = stop;
    }
    struct run *runs = PyMem_Calloc((size_t)*count + 1, sizeof *runs);
    at = first;
    for (Py_ssize_t i = 0; runs && i < *count; i++) {
        pages_next_run(&self->dirty, at, end, &start, &stop);
        int64_t limit = (int64_t)(stop << page_shift);
        limit = limit < self->size ? limit : self->size;
        runs[i] = (struct run){(int64_t)(start << page_shift), limit};
        at = stop;
    }
    return runs;
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
    struct run *runs = mapping_mark_leased(self) ? collect_runs(self, first, end, &count) : NULL;
    if (!runs)
        return PyErr_NoMemory();
    if (count)
        account_begin_writeback(self, first, end);
    PyObject *list = list_of_runs(runs, count);
    if (!list) /* nothing will be written: all of it is dirty as before */
        for (Py_ssize_t i = 0; i < count; i++)
            if (pages_of(runs[i].start, runs[i].end - runs[i].start, &first, &end))
                account_dirty(self, first, end, self->writeback_since);
    PyMem_Free(runs);
    return list;
}

static bool mark_dirty(Mapping *self, const struct run *runs, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        int64_t offset = runs[i].start, end = runs[i].end;
        size_t first, stop;
        end = end < self->size ? end : self->size;
        if (offset >= 0 && offset < end && pages_of(offset, end - offset, &first, &stop) &&
            !account_dirty(self, first, stop, self->writeback_since)) {
            PyErr_NoMemory();
            return false;
        }
    }
    return true;
}

PyObject *mapping_flush_end(Mapping *self, PyObject *failed)
{
    if (!PyList_CheckExact(failed))
        return PyErr_Format(PyExc_TypeError, "flush_end needs the list of runs that failed");
    Py_ssize_t count = 0;
    struct run *runs = runs_of(failed, &count);
    bool marked = runs && mark_dirty(self, runs, count);
    PyMem_Free(runs);
    account_end_writeback(self);
    if (!marked)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *mapping_dirty_runs(Mapping *self, PyObject *Py_UNUSED(unused))
{
    Py_ssize_t count;
    struct run *runs =
        mapping_mark_leased(self) ? collect_runs(self, 0, self->dirty.count, &count) : NULL;
    if (!runs)
        return PyErr_NoMemory();
    PyObject *list = list_of_runs(runs, count);
    PyMem_Free(runs);
    return list;
}

PyObject *mapping_dirty_bytes(Mapping *self, PyObject *Py_UNUSED(unused))
{
    if (!mapping_mark_leased(self))
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
