#include "flush.h"

#include "accounting.h"
#include "inline.h"
#include "lease.h"
#include "pin.h"
#include "receipt.h"
#include "state.h"

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

/* So many pages that nobody asked for are flushed with the others, rather than ranges one by one. */
#define FEW_PAGES ((size_t)64)

/* Whether a flush of everything costs about as much as one of what was asked for; -1 when out of memory.
 * It does not where a page may be a folio. */
static int asks_for_most(const Mapping *self, const struct run *asked, Py_ssize_t asked_count,
                         const struct run *dirty, Py_ssize_t dirty_count)
{
    size_t first, end, others = 0;
    struct pages pages = {.count = self->dirty.count};
    for (Py_ssize_t i = 0; i < asked_count; i++) {
        int64_t stop = asked[i].end < self->size ? asked[i].end : self->size;
        if (asked[i].start < stop && pages_of(asked[i].start, stop - asked[i].start, &first, &end) &&
            !pages_insert(&pages, first, end)) {
            pages_free(&pages);
            return -1;
        }
    }
    for (Py_ssize_t i = 0; i < dirty_count; i++)
        if (pages_of(dirty[i].start, dirty[i].end - dirty[i].start, &first, &end))
            others += pages_missing(&pages, first, end);
    bool cheap = !self->dirty_folios && !self->writable_leases;
    bool most = !others || (cheap && others <= pages.members + FEW_PAGES);
    pages_free(&pages);
    return most;
}

/* fdatasync(2) and stat, with all that is dirty in writeback until `flush_end`. */
static PyObject *flush_all(Mapping *self, const struct run *dirty, Py_ssize_t count)
{
    int error;
    struct pin pin;
    struct file_stat seen;
    size_t first, end;
    int64_t start = dirty[0].start, stop = dirty[count - 1].end;
    pages_of(start, stop - start, &first, &end);
    account_begin_writeback(self, first, end);
    long long bytes = (long long)(self->writeback_pages << page_shift) - (page_up(stop) - stop);
    WITHOUT_GIL(pin, self, error = file_sync(pin.fd, false);
                if (!error) error = file_stat(pin.fd, &seen););
    if (!error)
        return Py_BuildValue("(LL(LK))", bytes, (long long)stop, (long long)seen.size,
                             (unsigned long long)seen.links);
    bool marked = mark_dirty(self, dirty, count);
    account_end_writeback(self);
    return marked ? os_error(error) : NULL;
}

/* The way of nearly all groups of receipts; one release of the GIL, as in `commit`. */
PyObject *mapping_flush_receipts(Mapping *self, PyObject *list)
{
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    Py_ssize_t asked_count, count = 0;
    if (!mapping_check(self))
        return NULL;
    struct run *asked = receipt_runs(state, list, &asked_count), *dirty = NULL;
    if (!asked)
        return NULL;
    if (mapping_mark_leased(self))
        dirty = collect_runs(self, 0, self->dirty.count, &count);
    PyObject *result = NULL;
    int most = dirty && count ? asks_for_most(self, asked, asked_count, dirty, count) : 0;
    if (!dirty || most < 0)
        PyErr_NoMemory();
    else
        result = most ? flush_all(self, dirty, count) : Py_NewRef(Py_None);
    PyMem_Free(asked);
    PyMem_Free(dirty);
    return result;
}

/* In the loop thread, of a mapping that can be used. */
PyObject *mapping_awaits_flush(Mapping *self, PyObject *object)
{
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    uint64_t sequence;
    if (!is_loop_thread(self) || !mapping_is_usable(self) ||
        !receipt_awaits(state, object, &sequence))
        Py_RETURN_FALSE;
    return PyBool_FromLong(sequence > self->durable_sequence);
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
