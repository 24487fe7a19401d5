/* inline_write.c: stores of the loop thread (I1), and which way each takes.
 *
 * A store through the mapping costs least, and makes the next flush dear: it dirties the whole folio,
 * up to two megabytes, where pwrite(2) dirties one block. So a store is a pwrite(2) for as long as a
 * flush can be expected, and goes through the mapping where nobody flushes (docs/decisions.md).
 */
#include "inline.h"

#include <errno.h>

#include "accounting.h"
#include "buffer.h"
#include "gather.h"
#include "pin.h"
#include "receipt.h"
#include "state.h"

#include "../sys/thread_waits.h"

#define INLINE_WRITE_LIMIT_BYTES GIL_COPY_LIMIT_BYTES
/* A pwrite(2) that took so long beyond its bytes is slow. A byte takes less than a nanosecond. */
#define SLOW_PWRITE_NS INT64_C(250000)
/* So many that follow a slow one are looked at: a second slow one that slept, or spun for a lock, tells
 * that they wait. To look at each would take 0.9 us. */
#define SUSPECTED_PWRITES 8
/* After one of that long the next one of that long that slept tells it, too, within such a time. */
#define LONG_PWRITE_NS INT64_C(1000000)
#define WATCHED_NS INT64_C(2000000000)
/* For so long stores then go to a worker. It may be the inode's lock, which another process has, or
 * a page that the kernel is writing, or its limit for dirty pages: nothing tells when that ends. */
#define BLOCKED_NS INT64_C(1000000000)

/* Which way a store of the loop thread takes. For a worker's store, way_of in write.c decides. */
enum inline_way {
    WAY_WORKER,      /* it would wait: a page is not in memory, or our flush is writing it, which
                        makes a store wait for milliseconds (docs/decisions.md) */
    WAY_DESCRIPTOR,  /* by pwrite(2), without the GIL, for it enters the file system. Pages that are
                        not in memory have to be holes: they are not read. */
    WAY_MAPPING,     /* through the mapping, without the GIL: the first store to a clean page enters
                        the file system. Nothing tells whether the kernel has made a page clean. */
    WAY_WITH_GIL,    /* through the mapping: no file system is involved, as the pages are private, or
                        on tmpfs */
};

/* Whether a flush of ours is writing a range, or what a store to it would wait for. */
static bool is_in_writeback(const Mapping *self, int64_t offset, int64_t end)
{
    int64_t unit = self->stable_pages ? FOLIO_BYTES : 1;
    int64_t start = self->writeback_start / unit * unit;
    int64_t stop = (self->writeback_end + unit - 1) / unit * unit;
    return runs_overlap(offset, end, start, stop);
}

static enum inline_way way_of_inline(Mapping *self, int64_t offset, int64_t length, int64_t now)
{
    size_t first, end;
    int64_t stop = offset + length;
    if (is_in_writeback(self, offset, stop) ||
        runs_overlap(offset, stop, self->queued_start, self->queued_end)) /* I9 */
        return WAY_WORKER;
    pages_of(offset, length, &first, &end);
    account_refresh(self, now);
    if (pages_are(self, first, end, PRESENCE_READY)) /* their folios are dirty already */
        return self->private_copy || self->in_memory ? WAY_WITH_GIL : WAY_MAPPING;
    bool by_descriptor = self->local && !self->private_copy && now >= self->blocked_until;
    if (self->local && !self->private_copy && !self->in_memory && flush_is_near(self))
        return by_descriptor ? WAY_DESCRIPTOR : WAY_WORKER;
    if (region_is_resident(self->region, (size_t)offset, (size_t)length))
        return WAY_MAPPING;
    return by_descriptor ? WAY_DESCRIPTOR : WAY_WORKER;
}

bool inline_is_pwrite(Mapping *self, int64_t offset, int64_t length, int64_t now)
{
    return way_of_inline(self, offset, length, now) == WAY_DESCRIPTOR;
}

/* A store on its way. */
struct inline_store { /* the caller's own */
    int64_t offset;
    const char *from;
    size_t length;
    bool cached; /* its pages are known to be in memory */
    bool last;   /* it ends where verbs have to stop */
    /* What became of it. */
    enum presence presence;
    size_t copied;
    bool faulted; /* a page cannot be reached */
    bool cut;     /* others seem to have cut the file off meanwhile */
    struct pwrite_watch watch;
};

/* Without the GIL, from here on to store_now. */

static void store_mapped(const struct pin *pin, struct inline_store *store)
{
    store->copied = region_copy_in(pin->region, (size_t)store->offset, store->from, store->length);
    store->faulted = store->copied < store->length;
    store->presence = PRESENCE_READY;
}

bool pwrite_is_inline(const struct pin *pin, int64_t offset, int64_t end, bool *cached)
{
    int64_t start = (int64_t)page_down((size_t)offset);
    *cached = *cached ||
              region_is_resident(pin->region, (size_t)offset, (size_t)(end - offset));
    bool solid, one = page_up(end) - start == (int64_t)page_size();
    if (*cached)
        return one || file_has_blocks(pin->fd, start, end);
    return file_is_hole(pin->fd, start, end) &&
           (one || (file_reaches(pin->fd, end, &solid) && solid)); /* its blocks are reserved */
}

void pwrite_watch_begin(struct pwrite_watch *watch, int64_t now)
{
    watch->looks = watch->suspected || watch->watched;
    if (watch->looks) {
        watch->waits = thread_waits();
        watch->ran = thread_clock();
    }
    watch->begun = now;
}

void pwrite_watch_end(struct pwrite_watch *watch, size_t bytes)
{
    int64_t took = monotonic_clock() - watch->begun - (int64_t)bytes;
    bool slow = took >= SLOW_PWRITE_NS, is_long = took >= LONG_PWRITE_NS, slept, spun;
    if (slow && watch->looks) {
        slept = thread_waits() != watch->waits;
        spun = thread_clock() - watch->ran >= took / 2; /* or the host took the processor */
        watch->waited = watch->waited || (watch->suspected ? slept || spun : slept && is_long);
        slow = slept || spun; /* else the thread lost the processor */
    }
    watch->was_long = watch->was_long || (slow && is_long);
    watch->suspected = slow ? SUSPECTED_PWRITES : watch->suspected - (watch->suspected > 0);
}

/* pwrite(2) makes a file that others cut off as long again, with a hole where bytes were that are not
 * durable. So the size is looked at before. If they cut it just now, the next flush finds the file
 * shorter than it was, and looks for holes. But a store up to the end of the file makes it as long as
 * it was: then only the number of its blocks tells, and not always. */
static void store_by_descriptor(const struct pin *pin, struct inline_store *store)
{
    int error = 0;
    struct file_stat before, after;
    int64_t end = store->offset + (int64_t)store->length, size = file_size(pin->fd);
    if (size < end || !pwrite_is_inline(pin, store->offset, end, &store->cached))
        return;
    bool last = (store->last || size == end) && file_stat(pin->fd, &before) == 0;
    store->copied = file_write_one(pin->fd, store->from, store->length, store->offset, &error);
    store->presence = PRESENCE_CACHED;
    store->cut = last && file_stat(pin->fd, &after) == 0 && after.blocks < before.blocks &&
                 after.blocks * 512 < after.size;
    /* A limit on the size of files, a seal or a sandbox may refuse it where the mapping works. */
    if (!store->copied && store->cached && (error == EFBIG || error == EPERM || error == ENOSYS))
        store_mapped(pin, store);
}

/* Whether the flush policy wants to be asked about this store. */
static bool meets_limit(const Mapping *self, int64_t offset, int64_t length)
{
    const struct inline_limits *limits = &self->inline_limits;
    if (self->written_bytes + (uint64_t)length >= limits->bytes ||
        self->sequence + 1 >= limits->sequence)
        return true;
    if (limits->pages == NO_LIMIT)
        return false;
    size_t first, end;
    pages_of(offset, length, &first, &end);
    return self->dirty.members + self->writeback_pages + pages_missing(&self->dirty, first, end) >
           limits->pages;
}

struct pwrite_watch pwrite_watch(const Mapping *self, int64_t now)
{
    return (struct pwrite_watch){.watched = now < self->watched_until,
                                 .suspected = self->suspected_pwrites};
}

void pwrite_watch_note(Mapping *self, const struct pwrite_watch *watch)
{
    self->suspected_pwrites = watch->suspected;
    if (watch->was_long)
        self->watched_until = monotonic_clock() + WATCHED_NS;
    if (watch->waited)
        self->blocked_until = monotonic_clock() + BLOCKED_NS;
}

/* Let the GIL go for a store. One by the descriptor must not meet a change (mapping.3). */
static void store_without_gil(Mapping *self, struct pin *pin, struct inline_store *store,
                              enum inline_way way, int64_t now)
{
    if (way == WAY_MAPPING) {
        WITHOUT_GIL(*pin, self, store_mapped(pin, store););
        return;
    }
    pthread_mutex_lock(&self->pwrite_mutex);
    self->pwriting = true;
    WITHOUT_GIL(*pin, self, pwrite_watch_begin(&store->watch, now); store_by_descriptor(pin, store);
                pwrite_watch_end(&store->watch, store->length);
                pthread_mutex_unlock(&self->pwrite_mutex););
    self->pwriting = false;
    self->cut_suspected = self->cut_suspected || store->cut;
    self->counters.inline_pwrites += store->presence == PRESENCE_CACHED;
    pwrite_watch_note(self, &store->watch);
}

/* The receipt, None when the store has to take the slow way, or NULL with MemoryError. A store for
 * which the policy was `asked` before is bound neither by the time slice nor by the inline limits. */
static PyObject *store_now(Mapping *self, int64_t offset, const Py_buffer *data, bool asked)
{
    int64_t now = monotonic_clock();
    if (!range_is_valid(offset, data->len, self->reach) ||
        (size_t)data->len > INLINE_WRITE_LIMIT_BYTES || self->gather.count /* gather.2 */)
        Py_RETURN_NONE;
    if (!asked && !slice_allows(self, now))
        Py_RETURN_NONE;
    if (data->len == 0)
        return receipt_make(self, offset, 0, self->sequence);
    if (!asked && meets_limit(self, offset, data->len))
        Py_RETURN_NONE;
    enum inline_way way = way_of_inline(self, offset, data->len, now);
    size_t first, end;
    pages_of(offset, data->len, &first, &end);
    struct inline_store store = {.offset = offset,
                                 .from = data->buf,
                                 .length = (size_t)data->len,
                                 .cached = pages_are(self, first, end, PRESENCE_CACHED),
                                 .last = offset + data->len == self->reach,
                                 .watch = pwrite_watch(self, now)};
    struct pin pin = {.region = self->region};
    /* SAFETY: the buffer is exported to us, the region is held. */
    if (way == WAY_WITH_GIL)
        store_mapped(&pin, &store);
    else if (way != WAY_WORKER)
        store_without_gil(self, &pin, &store, way, now);
    bool whole = store.copied == store.length;
    enum presence presence = whole && !pin.moved ? store.presence : PRESENCE_UNKNOWN;
    if (!account_store(self, offset, store.copied, presence, now))
        return PyErr_NoMemory();
    self->counters.faults += store.faulted;
    if (!whole || pin.moved) { /* what may have been cut off meanwhile is stored again (mapping.2) */
        self->counters.fell_back_writes += asked && !store.copied; /* others are asked about next */
        Py_RETURN_NONE;
    }
    self->counters.inline_writes_done++;
    gather_note(self, offset, offset + data->len);
    return receipt_make(self, offset, data->len, account_write(self));
}

static PyObject *write_now(Mapping *self, PyObject *const *args, Py_ssize_t count, bool asked)
{
    int64_t offset;
    Py_buffer data;
    if (!self->inline_writes || (!asked && self->gather.expected > 0) || count != 2 ||
        !parse_integer(args[0], &offset))
        Py_RETURN_NONE;
    if (!buffer_take(args[1], &data, false)) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    PyObject *receipt = self->inline_writes && mapping_is_usable(self) /* after the buffer (mapping.2) */
                            ? store_now(self, offset, &data, asked)
                            : Py_NewRef(Py_None);
    PyBuffer_Release(&data);
    return receipt;
}

PyObject *mapping_write_inline(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    return write_now(self, args, count, false);
}

PyObject *mapping_write_now(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    return write_now(self, args, count, true);
}

/* Bytes neither change nor move. Other memory is exported until the write is over. */
PyObject *mapping_stage(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t offset;
    if (!self->writable || count != 2 || !parse_integer(args[0], &offset))
        Py_RETURN_NONE;
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    PyObject *data = buffer_export(state->export_type, args[1], false), *store;
    if (!data) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    if (mapping_is_usable(self) &&
        range_is_valid(offset, PyObject_Size(data), self->reach))
        store = PyTuple_Pack(2, args[0], data);
    else
        store = Py_NewRef(Py_None);
    Py_DECREF(data);
    return store;
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

