/* inline_write.c: see inline_write.h. */
#include "inline_write.h"

#include <errno.h>

#include "accounting.h"
#include "buffer.h"
#include "gather.h"
#include "inline.h"
#include "inline_way.h"
#include "pin.h"
#include "pwrite_watch.h"
#include "receipt.h"
#include "state.h"

#define INLINE_WRITE_LIMIT_BYTES GIL_COPY_LIMIT_BYTES

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

/* If others have cut the file off, pwrite(2) makes it as long again, with a hole where bytes were
 * that are not durable. So this looks at the size first. If they cut the file after that look, the
 * next flush finds it shorter than it was, and looks for holes. But a store up to the end of the
 * file makes it as long as it was: then only the number of its blocks tells, and not always. */
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
    /* A limit on the size of files, a seal or a sandbox may refuse pwrite(2) where the mapping
     * works. */
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

/* Returns the receipt, None when the store has to take the slow way, or NULL with MemoryError. A
 * store for which the policy was `asked` before is bound neither by the time slice nor by the
 * inline limits. */
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
    enum inline_way way = inline_way_of(self, offset, data->len, now);
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
        self->counters.fell_back_writes += asked && !store.copied; /* else a second try follows */
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
    PyObject *receipt = self->inline_writes && mapping_is_usable(self) /* mapping.2 */
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

