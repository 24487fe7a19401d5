#include "write.h"

#include <errno.h>

#include "accounting.h"
#include "inline.h"
#include "receipt.h"

#include "../sys/clock.h"
#include "../sys/guard.h"

/* Which way a store of a worker takes. */
enum way {
    WAY_NONE,       /* none: it is empty, or the file ends before it */
    WAY_MAPPING,    /* through the mapping */
    WAY_DESCRIPTOR, /* by pwrite(2), which makes only its own blocks dirty, and takes only these
                     * from the disk. A store through the mapping does both with whole folios of up
                     * to two megabytes (docs/decisions.md) */
};

/* What is known of the file while a worker applies stores. */
struct target { /* the caller's own */
    bool reached; /* it is shared, and no store reaches beyond its end */
    bool solid;   /* it has all of its blocks */
    int fd;
    struct lock_watch *lock;
};

/* Whether a store through the mapping asks for no more of the device, as its folios are dirty, and
 * saves a long wait for the inode's lock. */
static bool avoids_lock(const struct store *store, const struct target *target)
{
    if (!target->lock->held || (size_t)store->data.len > GIL_COPY_LIMIT_BYTES)
        return false;
    int64_t start = (int64_t)page_down((size_t)store->offset);
    uint64_t length = (uint64_t)(page_up(store->offset + store->data.len) - start);
    struct cache_counts found;
    return !file_cachestat(target->fd, (uint64_t)start, length, &found) &&
           found.dirty * page_size() >= length;
}

static enum way way_of(const struct store *store, const struct target *target)
{
    if (store->outside || !store->data.len)
        return WAY_NONE;
    bool mapped = !target->reached || store->ready || avoids_lock(store, target);
    return mapped ? WAY_MAPPING : WAY_DESCRIPTOR;
}

/* Without the GIL. Make every page writable before storing the first byte, so that a full disk or a
 * truncated file shows while nothing has changed yet. */
static void store_mapped(const struct region *region, struct store *store)
{
    size_t length = (size_t)store->data.len, offset = (size_t)store->offset;
    store->error = 0;
    for (size_t at = 0; !store->ready && at < length;) {
        ssize_t step = region_populate(region, offset + at, length - at, true);
        if (step == -EINTR || step == -EAGAIN)
            continue;
        if (step < 0)
            return;
        at += (size_t)step;
    }
    store->copied = region_copy_in(region, offset, store->data.buf, length);
    store->ready = store->copied == length;
}

static bool is_next(const struct store *store, const struct store *last)
{
    return store->offset == last->offset + last->data.len;
}

/* Without the GIL. Allocate the blocks that a write of several pages might lack half-way, so that a
 * full disk shows while nothing has changed yet. 0 or an errno number. */
static int make_room(int fd, int64_t offset, size_t length, const struct target *target)
{
    int64_t page = (int64_t)page_size(), end = offset + (int64_t)length;
    if (target->solid || offset / page == (end - 1) / page)
        return 0;
    return file_fill_holes(fd, (off_t)offset, (off_t)end);
}

/* Without the GIL. Write the first store, and those that follow it without a gap; returns how
 * many. */
static Py_ssize_t store_through(int fd, struct store *stores, Py_ssize_t count,
                                const struct target *target)
{
    enum { RUN = 64 };
    struct iovec pieces[RUN];
    size_t total = 0;
    Py_ssize_t run = 0;
    do {
        pieces[run] = (struct iovec){stores[run].data.buf, (size_t)stores[run].data.len};
        total += (size_t)stores[run++].data.len;
    } while (run < count && run < RUN && way_of(&stores[run], target) == WAY_DESCRIPTOR &&
             is_next(&stores[run], &stores[run - 1]) &&
             total + (size_t)stores[run].data.len <= PIECE_BYTES);
    int error = make_room(fd, stores->offset, total, target);
    if (error && run > 1) /* there may be room for the first one */
        return store_through(fd, stores, 1, target);
    if (error) {
        stores->error = error;
        return 1;
    }
    size_t done = 0;
    if (total <= PIECE_BYTES)
        done = file_write(fd, pieces, (int)run, (off_t)stores->offset, &error);
    for (size_t put = 1; total > PIECE_BYTES && done < total && put; done += put) {
        size_t length = total - done < PIECE_BYTES ? total - done : PIECE_BYTES;
        struct iovec piece = {(char *)stores->data.buf + done, length};
        put = file_write(fd, &piece, 1, (off_t)stores->offset + (off_t)done, &error);
    }
    for (Py_ssize_t i = 0; i < run; i++) {
        size_t length = (size_t)stores[i].data.len;
        stores[i].copied = done < length ? done : length;
        stores[i].error = done < length ? error : 0;
        done -= stores[i].copied;
    }
    return run;
}

/* Call store_through, and see whether it spins for the inode's lock. */
static Py_ssize_t store_watched(struct store *stores, Py_ssize_t count, const struct target *target)
{
    struct pwrite_watch watch = {.watched = true};
    size_t total = 0;
    if (!target->lock->looks)
        return store_through(target->fd, stores, count, target);
    pwrite_watch_begin(&watch, monotonic_clock());
    Py_ssize_t done = store_through(target->fd, stores, count, target);
    for (Py_ssize_t i = 0; i < done; i++)
        total += (size_t)stores[i].data.len;
    pwrite_watch_end(&watch, total);
    if (watch.spun && total <= GIL_COPY_LIMIT_BYTES)
        lock_watch_spin(target->lock);
    return done;
}

/* Without the GIL. Try the other way if the first one failed. A limit on the size of files, a seal
 * or a sandbox may refuse pwrite(2) where the mapping works. And a page that was there a moment ago
 * may have no block, or be gone, where pwrite(2) works. */
static void store_otherwise(const struct pin *pin, struct store *store, enum way way,
                            const struct target *target)
{
    if (store_is_whole(store))
        return;
    if (way == WAY_DESCRIPTOR && (store->error == EFBIG || store->error == EPERM ||
                                  store->error == ENOSYS || store->error == EINVAL))
        store_mapped(pin->region, store);
    else if (way == WAY_MAPPING && target->reached)
        store_through(pin->fd, store, 1, target);
}

/* Without the GIL. */
static void put_stores(const struct pin *pin, struct stores *all, bool shared)
{
    struct store *stores = all->items;
    Py_ssize_t count = all->count;
    int64_t end = 0;
    guard_refresh();
    for (Py_ssize_t i = 0; i < count; i++)
        if (!stores[i].outside && stores[i].offset + stores[i].data.len > end)
            end = stores[i].offset + stores[i].data.len;
    struct target target = {.fd = pin->fd, .lock = &all->lock};
    target.reached = shared && file_reaches(pin->fd, (off_t)end, &target.solid);
    for (Py_ssize_t i = 0, done; i < count; i += done) {
        enum way way = way_of(&stores[i], &target);
        done = 1;
        if (way == WAY_DESCRIPTOR)
            done = store_watched(&stores[i], count - i, &target);
        else if (way == WAY_MAPPING)
            store_mapped(pin->region, &stores[i]);
        for (Py_ssize_t at = i; at < i + done; at++)
            store_otherwise(pin, &stores[at], way, &target);
    }
}

/* If others cut the file off meanwhile, pwrite(2) makes it as long again, with a hole where bytes
 * were that are not durable. The only sign is that the file has fewer blocks. A file system that
 * compresses gives blocks back as well. So this is only a suspicion, and the next flush has to find
 * out. */
void stores_apply(const struct pin *pin, struct stores *stores, bool shared)
{
    struct file_stat before, after;
    bool seen = shared && file_stat(pin->fd, &before) == 0;
    put_stores(pin, stores, shared);
    stores->cut = seen && file_stat(pin->fd, &after) == 0 && after.blocks < before.blocks &&
                  after.blocks * 512 < after.size;
}

static bool load(PyObject *items, struct stores *stores)
{
    for (; stores->loaded < stores->count; stores->loaded++) {
        struct store *store = &stores->items[stores->loaded];
        PyObject *item = PyTuple_GetItem(items, stores->loaded);
        long long offset;
        if (!PyArg_ParseTuple(item, "Ly*:write_many", &offset, &store->data))
            return false;
        store->offset = offset;
    }
    return true;
}

/* Check the stores once all are loaded: to export a buffer may run Python code (mapping.2). */
static bool check(const Mapping *self, struct stores *stores)
{
    size_t first, end;
    if (!mapping_check(self))
        return false;
    for (Py_ssize_t i = 0; i < stores->count; i++) {
        struct store *store = &stores->items[i];
        store->outside = !range_is_valid(store->offset, store->data.len, self->reach);
        store->ready = !store->outside &&
                       (!pages_of(store->offset, store->data.len, &first, &end) ||
                        pages_has_all(&self->ready, first, end));
    }
    return true;
}

bool stores_load(Mapping *self, PyObject *list, struct stores *stores)
{
    *stores = (struct stores){0};
    if (!PyList_CheckExact(list)) {
        PyErr_SetString(PyExc_TypeError, "stores have to be a list of (offset, buffer)");
        return false;
    }
    PyObject *items = PyList_AsTuple(list); /* a copy, as an export may change the list */
    if (!items)
        return false;
    stores->count = PyTuple_Size(items);
    stores->items = PyMem_Calloc((size_t)stores->count + 1, sizeof *stores->items);
    if (!stores->items)
        PyErr_NoMemory();
    bool loaded = stores->items && load(items, stores);
    Py_DECREF(items);
    return loaded && check(self, stores);
}

void stores_release(struct stores *stores)
{
    for (Py_ssize_t i = 0; i < stores->loaded; i++)
        PyBuffer_Release(&stores->items[i].data);
    PyMem_Free(stores->items);
}

/* Account for one store. Returns a receipt, or (copied, error) for one that stopped short. */
static PyObject *account_for(Mapping *self, const struct store *store, bool flushed, int64_t now)
{
    bool whole = store_is_whole(store);
    if (flushed)
        account_bytes(self, store->offset, store->copied);
    else if (!account_store(self, store->offset, store->copied,
                            !whole         ? PRESENCE_UNKNOWN
                            : store->ready ? PRESENCE_READY
                                           : PRESENCE_CACHED,
                            now))
        return PyErr_NoMemory();
    if (!whole) {
        self->counters.faults++;
        return Py_BuildValue("(ni)", (Py_ssize_t)store->copied, store->error);
    }
    uint64_t sequence = store->copied ? account_write(self) : self->sequence;
    return receipt_make(self, store->offset, store->data.len, sequence);
}

PyObject *stores_account(Mapping *self, const struct stores *stores, bool flushed)
{
    self->cut_suspected = self->cut_suspected || stores->cut;
    PyObject *results = PyList_New(stores->count);
    int64_t now = monotonic_clock();
    for (Py_ssize_t i = 0; results && i < stores->count; i++) {
        PyObject *result = account_for(self, &stores->items[i], flushed, now);
        if (!result)
            Py_CLEAR(results);
        else
            PyList_SetItem(results, i, result);
    }
    return results;
}

PyObject *mapping_write_many(Mapping *self, PyObject *list)
{
    PyObject *results = NULL;
    struct stores stores;
    if (stores_load(self, list, &stores)) {
        struct pin pin;
        bool shared = !self->private_copy;
        /* SAFETY: the buffers are exported to us until they are released below, so nobody can
         * free or move them while the copy runs. */
        stores.lock = lock_watch(self, monotonic_clock());
        WITHOUT_GIL(pin, self, stores_apply(&pin, &stores, shared););
        lock_watch_note(self, &stores.lock);
        results = stores_account(self, &stores, false);
    }
    stores_release(&stores);
    return results;
}
