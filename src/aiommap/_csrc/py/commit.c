#include "commit.h"

#include "accounting.h"
#include "lease.h"
#include "pin.h"
#include "pool_commit.h"
#include "write.h"

#include "../sys/clock.h"

struct commit { /* by one thread at a time */
    struct pin pin;
    struct stores stores;
    bool shared;
    uint64_t before;   /* the sequence of the mapping when it began */
    int64_t last;      /* where the last store ends */

    /* What became of it. */
    bool stored; /* everything; otherwise nothing is flushed */
    int error;   /* of the flush or of the stat */
    struct file_stat seen;
};

static void store_and_sync(void *call)
{
    struct commit *self = call;
    stores_apply(&self->pin, &self->stores, self->shared);
    self->stored = true;
    for (Py_ssize_t i = 0; i < self->stores.count; i++)
        self->stored = self->stored && store_is_whole(&self->stores.items[i]);
    if (self->stored)
        self->error = file_sync(self->pin.fd, false);
    if (self->stored && !self->error)
        self->error = file_stat(self->pin.fd, &self->seen);
}

static bool has_flushed(const struct commit *self) { return self->stored && !self->error; }

static bool succeeded(const void *call)
{
    const struct commit *self = call;
    return has_flushed(self) && !self->stores.cut && !self->pin.mapping->cut_suspected;
}

/* Count the pages of stores as in writeback, as if they were stored to already. Returns where the
 * last store ends, or -1 when out of memory. */
static int64_t begin_writeback(Mapping *mapping, const struct stores *stores)
{
    size_t first, end, low = SIZE_MAX, high = 0;
    int64_t now = monotonic_clock(), last = 0;
    for (Py_ssize_t i = 0; i < stores->count; i++) {
        const struct store *store = &stores->items[i];
        int64_t stop = store->offset + (int64_t)store->data.len;
        if (store->outside || !pages_of(store->offset, store->data.len, &first, &end))
            continue;
        if (!account_dirty(mapping, first, end, now))
            return -1;
        low = first < low ? first : low;
        high = end > high ? end : high;
        last = stop > last ? stop : last;
    }
    if (low < high)
        account_begin_writeback(mapping, low, high);
    return last;
}

/* Bytes of the pages in writeback, up to the end of the file. */
static int64_t writeback_bytes(const Mapping *mapping, int64_t last)
{
    int64_t end = page_up(last);
    return (int64_t)(mapping->writeback_pages << page_shift) -
           (end > mapping->size ? end - mapping->size : 0);
}

/* After a success the pages stay in writeback until `end_writeback`. */
static PyObject *end(void *call)
{
    struct commit *self = call;
    Mapping *mapping = (Mapping *)Py_NewRef((PyObject *)self->pin.mapping);
    pin_let_go(&self->pin);
    bool alone = self->before == mapping->sequence;
    PyObject *outcome = stores_account(mapping, &self->stores, has_flushed(self));
    if (outcome && has_flushed(self)) {
        outcome = Py_BuildValue("(NOLL(LK))", outcome, alone ? Py_True : Py_False,
                                (long long)writeback_bytes(mapping, self->last),
                                (long long)self->last, (long long)self->seen.size,
                                (unsigned long long)self->seen.links);
    } else {
        account_end_writeback(mapping);
        if (outcome && self->error) {
            Py_DECREF(outcome);
            outcome = PyLong_FromLong(self->error);
        }
    }
    Py_DECREF((PyObject *)mapping);
    return outcome;
}

static void release(void *call)
{
    struct commit *self = call;
    pin_let_go(&self->pin);
    stores_release(&self->stores);
}

static const struct commit_kind kind = {store_and_sync, succeeded, end, release};

/* Begin a commit whose stores are loaded; returns what pool_commit_begin returns, or None if other
 * pages are dirty. */
static PyObject *begin(Mapping *mapping, struct commit *self, PyObject *queue, PyObject *tell)
{
    if (!mapping_mark_leased(mapping))
        return PyErr_NoMemory();
    if (mapping->dirty.members)
        Py_RETURN_NONE;
    self->last = begin_writeback(mapping, &self->stores);
    if (self->last < 0)
        return PyErr_NoMemory();
    self->before = mapping->sequence;
    self->shared = !mapping->private_copy;
    pin_hold(&self->pin, mapping);
    /* SAFETY: the buffers are exported to us until `release`. */
    PyObject *begun = pool_commit_begin(PyType_GetModuleState(Py_TYPE((PyObject *)mapping)), queue,
                                        &kind, self, tell);
    if (!begun || Py_IsNone(begun))
        account_end_writeback(mapping);
    return begun;
}

/* begin_commit(queue, stores, tell) */
PyObject *mapping_begin_commit(Mapping *self, PyObject *args)
{
    PyObject *queue, *list, *tell;
    if (!PyArg_ParseTuple(args, "OOO:begin_commit", &queue, &list, &tell))
        return NULL;
    struct commit *commit = PyMem_Calloc(1, sizeof *commit);
    if (!commit)
        return PyErr_NoMemory();
    PyObject *begun =
        stores_load(self, list, &commit->stores) ? begin(self, commit, queue, tell) : NULL;
    if (!begun || Py_IsNone(begun)) {
        release(commit);
        PyMem_Free(commit);
    }
    return begun;
}
