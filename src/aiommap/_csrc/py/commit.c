#include "commit.h"

#include "accounting.h"
#include "lease.h"
#include "pin.h"
#include "write.h"

#include "../sys/clock.h"

/* What a commit found out without the GIL. */
struct commit { /* the caller's own */
    bool stored; /* all of it; nothing is flushed otherwise */
    int error;   /* of the flush or of the stat */
    struct file_stat seen;
};

/* Without the GIL. */
static struct commit store_and_sync(const struct pin *pin, struct stores *stores, bool shared)
{
    struct commit done = {.stored = true};
    stores_apply(pin, stores, shared);
    for (Py_ssize_t i = 0; i < stores->count; i++)
        done.stored = done.stored && store_is_whole(&stores->items[i]);
    if (done.stored)
        done.error = file_sync(pin->fd, false);
    if (done.stored && !done.error)
        done.error = file_stat(pin->fd, &done.seen);
    return done;
}

/* Have the pages of stores be in writeback, as if they were stored to already; where the last store
 * ends, or -1 when out of memory. */
static int64_t begin_writeback(Mapping *self, const struct stores *stores)
{
    size_t first, end, low = SIZE_MAX, high = 0;
    int64_t now = monotonic_clock(), last = 0;
    for (Py_ssize_t i = 0; i < stores->count; i++) {
        const struct store *store = &stores->items[i];
        int64_t stop = store->offset + (int64_t)store->data.len;
        if (store->outside || !pages_of(store->offset, store->data.len, &first, &end))
            continue;
        if (!account_dirty(self, first, end, now))
            return -1;
        low = first < low ? first : low;
        high = end > high ? end : high;
        last = stop > last ? stop : last;
    }
    if (low < high)
        account_begin_writeback(self, low, high);
    return last;
}

/* Bytes of the pages in writeback, up to the end of the file. */
static int64_t writeback_bytes(const Mapping *self, int64_t last)
{
    int64_t end = page_up(last);
    return (int64_t)(self->writeback_pages << page_shift) -
           (end > self->size ? end - self->size : 0);
}

/* With the GIL again. After a success the pages stay in writeback until `flush_end`. */
static PyObject *end_commit(Mapping *self, const struct stores *stores, const struct commit *done,
                            int64_t last, bool alone)
{
    bool flushed = done->stored && !done->error;
    PyObject *results = stores_account(self, stores, flushed);
    if (results && flushed)
        return Py_BuildValue("(NOLL(LK))", results, alone ? Py_True : Py_False,
                             (long long)writeback_bytes(self, last), (long long)last,
                             (long long)done->seen.size, (unsigned long long)done->seen.links);
    account_end_writeback(self);
    if (results && done->error) {
        Py_DECREF(results);
        return os_error(done->error);
    }
    return results;
}

static PyObject *commit(Mapping *self, struct stores *stores)
{
    if (!mapping_mark_leased(self))
        return PyErr_NoMemory();
    if (self->dirty.members)
        Py_RETURN_NONE;
    int64_t last = begin_writeback(self, stores);
    if (last < 0)
        return PyErr_NoMemory();
    struct pin pin;
    struct commit done;
    uint64_t sequence = self->sequence;
    bool shared = !self->private_copy;
    /* SAFETY: the buffers are exported to us until the caller releases them. */
    WITHOUT_GIL(pin, self, done = store_and_sync(&pin, stores, shared););
    return end_commit(self, stores, &done, last, sequence == self->sequence);
}

/* One release of the GIL where `write_many`, `flush_begin`, `sync` and `stat` would be four, with
 * a thread's wait for the GIL after each. */
PyObject *mapping_commit(Mapping *self, PyObject *list)
{
    struct stores stores;
    PyObject *result = stores_load(self, list, &stores) ? commit(self, &stores) : NULL;
    stores_release(&stores);
    return result;
}
