#include "flush.h"

#include "accounting.h"
#include "inline.h"
#include "lease.h"
#include "pin.h"
#include "pool_commit.h"
#include "receipt.h"

/* The dirty runs in pages [first, end) as byte ranges, the last one clipped to the size; for
 * PyMem_Free. They are collected in C first, because making Python objects can run code that stores
 * to the file. */
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

PyObject *mapping_begin_writeback(Mapping *self, PyObject *args)
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
    if (!list) /* nothing will be written, so all of it stays dirty */
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

PyObject *mapping_end_writeback(Mapping *self, PyObject *failed)
{
    if (!PyList_CheckExact(failed))
        return PyErr_Format(PyExc_TypeError, "end_writeback needs the list of runs that failed");
    Py_ssize_t count = 0;
    struct run *runs = runs_of(failed, &count);
    bool marked = runs && mark_dirty(self, runs, count);
    PyMem_Free(runs);
    account_end_writeback(self);
    if (!marked)
        return NULL;
    Py_RETURN_NONE;
}

/* One flush of everything replaces those of single ranges, if it takes at most this many more pages
 * than the ranges have. */
#define FEW_PAGES ((size_t)64)

/* Whether a flush of everything costs about as much as one of the ranges asked for; -1 when out of
 * memory. It costs more where a page may stand for a whole folio. */
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

/* fdatasync(2) and stat, with all that is dirty in writeback until `end_writeback`. */
struct flush { /* by one thread at a time */
    struct pin pin;
    struct run *dirty;
    Py_ssize_t count;
    int64_t bytes;

    /* What became of it. */
    int error;
    struct file_stat seen;
};

static void sync_and_look(void *call)
{
    struct flush *self = call;
    self->error = file_sync(self->pin.fd, false);
    if (!self->error)
        self->error = file_stat(self->pin.fd, &self->seen);
}

static bool succeeded(const void *call)
{
    const struct flush *self = call;
    return !self->error && !self->pin.mapping->cut_suspected;
}

/* Make what was to be flushed dirty again; false with an exception. */
static bool undo(Mapping *mapping, const struct flush *self)
{
    bool marked = mark_dirty(mapping, self->dirty, self->count);
    account_end_writeback(mapping);
    return marked;
}

static PyObject *end(void *call)
{
    struct flush *self = call;
    Mapping *mapping = (Mapping *)Py_NewRef((PyObject *)self->pin.mapping);
    pin_let_go(&self->pin);
    PyObject *outcome = NULL, *runs = NULL;
    if (!self->error && (runs = list_of_runs(self->dirty, self->count)) != NULL)
        outcome = Py_BuildValue("(LL(LK)N)", (long long)self->bytes,
                                (long long)self->dirty[self->count - 1].end,
                                (long long)self->seen.size, (unsigned long long)self->seen.links,
                                runs);
    if (!outcome && undo(mapping, self) && self->error)
        outcome = PyLong_FromLong(self->error);
    Py_DECREF((PyObject *)mapping);
    return outcome;
}

static void release(void *call)
{
    struct flush *self = call;
    pin_let_go(&self->pin);
    PyMem_Free(self->dirty);
}

static const struct commit_kind kind = {sync_and_look, succeeded, end, release};

static PyObject *begin(Mapping *mapping, struct flush *self, PyObject *queue, PyObject *tell)
{
    size_t first, stop;
    int64_t end = self->dirty[self->count - 1].end;
    pages_of(self->dirty[0].start, end - self->dirty[0].start, &first, &stop);
    account_begin_writeback(mapping, first, stop);
    self->bytes = (int64_t)(mapping->writeback_pages << page_shift) - (page_up(end) - end);
    pin_hold(&self->pin, mapping);
    PyObject *begun = pool_commit_begin(PyType_GetModuleState(Py_TYPE((PyObject *)mapping)), queue,
                                        &kind, self, tell);
    if ((!begun || Py_IsNone(begun)) && !undo(mapping, self))
        Py_CLEAR(begun);
    return begun;
}

/* begin_flush(queue, asked, tell): this serves nearly all groups of tasks that wait for
 * receipts. */
PyObject *mapping_begin_flush(Mapping *self, PyObject *args)
{
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    PyObject *queue, *list, *tell, *begun = NULL;
    if (!PyArg_ParseTuple(args, "OOO:begin_flush", &queue, &list, &tell) || !mapping_check(self))
        return NULL;
    Py_ssize_t asked_count;
    struct run *asked = receipt_runs(state, list, &asked_count);
    struct flush *flush = asked ? PyMem_Calloc(1, sizeof *flush) : NULL;
    if (!flush) {
        PyMem_Free(asked);
        return asked ? PyErr_NoMemory() : NULL;
    }
    if (mapping_mark_leased(self))
        flush->dirty = collect_runs(self, 0, self->dirty.count, &flush->count);
    int most = flush->dirty && flush->count ? asks_for_most(self, asked, asked_count, flush->dirty,
                                                            flush->count)
                                            : 0;
    if (!flush->dirty || most < 0)
        PyErr_NoMemory();
    else
        begun = most ? begin(self, flush, queue, tell) : Py_NewRef(Py_None);
    PyMem_Free(asked);
    if (!begun || Py_IsNone(begun)) {
        release(flush);
        PyMem_Free(flush);
    }
    return begun;
}

/* Whether a receipt awaits a flush, and this is the loop thread of a usable mapping. */
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

/* How many bytes would be dirty or in writeback after a store to a range. */
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
