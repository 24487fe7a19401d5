/* write.c: what worker threads store, and make durable in the same breath, without the GIL. */
#include "../sys/guard.h"
#include "mapping.h"

#include <errno.h>

/* Which way a store of a worker takes. */
enum way {
    WAY_NONE,       /* none: it is empty, or the file ends before it */
    WAY_MAPPING,    /* through the mapping */
    WAY_DESCRIPTOR, /* by pwrite(2): that makes only its own blocks dirty, and takes only these from
                       the disk, where a store through the mapping does so with whole folios, of
                       up to two megabytes (docs/decisions.md) */
};

struct store { /* the caller's own */
    Py_buffer data;
    int64_t offset;
    bool outside;  /* the file was made shorter since the range was checked: nothing is stored */
    bool ready;    /* its pages are known to be present and writable; result: whether they are */
    size_t copied; /* result */
    int error;     /* result: what the kernel said when it refused the rest; 0 for a fault */
};

/* What is known of the file while stores are applied. */
struct target { /* the caller's own */
    bool reached; /* it is shared, and as long as the stores need it: pwrite(2) makes it no longer */
    bool solid;   /* it has all of its blocks */
};

static enum way way_of(const struct store *store, const struct target *target)
{
    if (store->outside || !store->data.len)
        return WAY_NONE;
    return target->reached && !store->ready ? WAY_DESCRIPTOR : WAY_MAPPING;
}

/* Without the GIL. Every page is made writable before the first byte is stored, so that a full
 * disk or a truncated file is found while nothing has been changed yet. */
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

/* Without the GIL. What a write of several pages may find missing half-way is looked for before it, so
 * that a full disk is found while nothing has been changed yet: an errno number, or 0. */
static int make_room(int fd, int64_t offset, size_t length, const struct target *target)
{
    int64_t page = (int64_t)page_size(), end = offset + (int64_t)length;
    if (target->solid || offset / page == (end - 1) / page)
        return 0;
    return file_fill_holes(fd, (off_t)offset, (off_t)end);
}

/* Without the GIL. Write stores that lie one behind the other, from the first on; how many. */
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
    if (error && run > 1) /* there may be room for the first ones */
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

static bool is_whole(const struct store *store)
{
    return !store->outside && store->copied == (size_t)store->data.len;
}

/* Without the GIL. Go the other way where the first one is closed: a limit on the size of files, a
 * seal or a sandbox may refuse a write where the mapping works; and a page that was there a moment
 * ago may have no block, or not be there any more. */
static void store_otherwise(const struct pin *pin, struct store *store, enum way way,
                            const struct target *target)
{
    if (is_whole(store))
        return;
    if (way == WAY_DESCRIPTOR && (store->error == EFBIG || store->error == EPERM ||
                                  store->error == ENOSYS || store->error == EINVAL))
        store_mapped(pin->region, store);
    else if (way == WAY_MAPPING && target->reached)
        store_through(pin->fd, store, 1, target);
}

/* Without the GIL. */
static void put_stores(const struct pin *pin, struct store *stores, Py_ssize_t count, bool shared)
{
    int64_t end = 0;
    guard_refresh();
    for (Py_ssize_t i = 0; i < count; i++)
        if (!stores[i].outside && stores[i].offset + stores[i].data.len > end)
            end = stores[i].offset + stores[i].data.len;
    struct target target = {0};
    target.reached = shared && file_reaches(pin->fd, (off_t)end, &target.solid);
    for (Py_ssize_t i = 0, done; i < count; i += done) {
        enum way way = way_of(&stores[i], &target);
        done = 1;
        if (way == WAY_DESCRIPTOR)
            done = store_through(pin->fd, &stores[i], count - i, &target);
        else if (way == WAY_MAPPING)
            store_mapped(pin->region, &stores[i]);
        for (Py_ssize_t at = i; at < i + done; at++)
            store_otherwise(pin, &stores[at], way, &target);
    }
}

/* Without the GIL; true if others seem to have cut the file off meanwhile. pwrite(2) makes it as long
 * again then, with a hole where bytes were that are not durable; nothing tells but that it has fewer
 * blocks. A file system that compresses gives blocks back as well, so whoever flushes has to see. */
static bool apply_stores(const struct pin *pin, struct store *stores, Py_ssize_t count,
                         bool shared)
{
    struct file_stat before, after;
    bool seen = shared && file_stat(pin->fd, &before) == 0;
    put_stores(pin, stores, count, shared);
    return seen && file_stat(pin->fd, &after) == 0 && after.blocks < before.blocks &&
           after.blocks * 512 < after.size;
}

static bool load_stores(PyObject *items, struct store *stores, Py_ssize_t *loaded)
{
    for (Py_ssize_t i = 0; i < PyTuple_Size(items); i++) {
        long long offset;
        struct store *store = &stores[i];
        if (!PyArg_ParseTuple(PyTuple_GetItem(items, i), "Ly*:write_many", &offset, &store->data))
            return false;
        store->offset = offset;
        ++*loaded;
    }
    return true;
}

/* Once all are loaded, as a buffer may be Python's (mapping.2); false with an exception. */
static bool check_stores(const Mapping *self, struct store *stores, Py_ssize_t count)
{
    size_t first, end;
    if (!mapping_check(self))
        return false;
    for (struct store *store = stores; store < stores + count; store++) {
        store->outside = !range_is_valid(store->offset, store->data.len, self->reach);
        store->ready = !store->outside &&
                       (!pages_of(store->offset, store->data.len, &first, &end) ||
                        pages_has_all(&self->ready, first, end));
    }
    return true;
}

/* Count one store, and make its receipt, or (copied, error) for one that stopped short. What was
 * `flushed` already is not dirty. */
static PyObject *settle_store(Mapping *self, struct store *store, bool flushed, int64_t now)
{
    bool whole = is_whole(store);
    if (flushed)
        mapping_count(self, store->offset, store->copied);
    else if (!mapping_stored(self, store->offset, store->copied, whole && store->ready, now))
        return PyErr_NoMemory();
    if (!whole) {
        self->counters.faults++;
        return Py_BuildValue("(ni)", (Py_ssize_t)store->copied, store->error);
    }
    self->sequence += store->copied > 0;
    return receipt_make(self, store->offset, store->data.len, self->sequence);
}

static PyObject *settle_stores(Mapping *self, struct store *stores, Py_ssize_t count, bool flushed)
{
    PyObject *results = PyList_New(count);
    int64_t now = monotonic_clock();
    for (Py_ssize_t i = 0; results && i < count; i++) {
        PyObject *result = settle_store(self, &stores[i], flushed, now);
        if (!result)
            Py_CLEAR(results);
        else
            PyList_SetItem(results, i, result);
    }
    return results;
}

static void release_stores(struct store *stores, Py_ssize_t loaded)
{
    for (Py_ssize_t i = 0; i < loaded; i++)
        PyBuffer_Release(&stores[i].data);
    PyMem_Free(stores);
}

/* Load a list, of which a copy is made: a buffer that is Python's may change it. NULL with an
 * exception; what was loaded until then is to be released all the same. */
static struct store *make_stores(PyObject *list, Py_ssize_t *count, Py_ssize_t *loaded, bool *all)
{
    *all = false;
    if (!PyList_CheckExact(list)) {
        PyErr_SetString(PyExc_TypeError, "stores have to be a list of (offset, buffer)");
        return NULL;
    }
    PyObject *items = PyList_AsTuple(list);
    if (!items)
        return NULL;
    *count = PyTuple_Size(items);
    struct store *stores = PyMem_Calloc(*count ? (size_t)*count : 1, sizeof *stores);
    if (stores)
        *all = load_stores(items, stores, loaded);
    else
        PyErr_NoMemory();
    Py_DECREF(items);
    return stores;
}

PyObject *mapping_write_many(Mapping *self, PyObject *items)
{
    PyObject *results = NULL;
    Py_ssize_t count, loaded = 0;
    bool all;
    struct store *stores = make_stores(items, &count, &loaded, &all);
    if (!stores)
        return NULL;
    if (all && check_stores(self, stores, count)) {
        struct pin pin;
        /* SAFETY: the buffers are exported to us until they are released below, so nobody can
         * free or move them while the copy runs. */
        bool cut, shared = !self->private_copy;
        WITHOUT_GIL(pin, self, cut = apply_stores(&pin, stores, count, shared););
        self->cut_suspected = self->cut_suspected || cut;
        results = settle_stores(self, stores, count, false);
    }
    release_stores(stores, loaded);
    return results;
}

/* What a commit found out without the GIL. */
struct commit { /* the caller's own */
    bool stored; /* all of it; nothing is flushed otherwise */
    bool cut;    /* see apply_stores */
    int error;   /* of the flush or of the stat */
    struct file_stat seen;
};

/* Without the GIL. */
static struct commit commit_stores(const struct pin *pin, struct store *stores, Py_ssize_t count,
                                   bool shared)
{
    struct commit done = {.stored = true};
    done.cut = apply_stores(pin, stores, count, shared);
    for (Py_ssize_t i = 0; i < count; i++)
        done.stored = done.stored && is_whole(&stores[i]);
    if (done.stored)
        done.error = file_sync(pin->fd, false);
    if (done.stored && !done.error)
        done.error = file_stat(pin->fd, &done.seen);
    return done;
}

/* Let the pages of stores be those that a flush is writing, as if they were stored to already; where
 * the last one ends, or -1 when out of memory. */
static int64_t begin_writeback(Mapping *self, const struct store *stores, Py_ssize_t count)
{
    size_t first, end, low = SIZE_MAX, high = 0;
    int64_t now = monotonic_clock(), last = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        int64_t stop = stores[i].offset + (int64_t)stores[i].data.len;
        if (stores[i].outside || !pages_of(stores[i].offset, stores[i].data.len, &first, &end))
            continue;
        if (!mapping_dirty(self, first, end, now))
            return -1;
        low = first < low ? first : low;
        high = end > high ? end : high;
        last = stop > last ? stop : last;
    }
    if (low < high)
        mapping_begin_writeback(self, low, high);
    return last;
}

/* Bytes of the pages that a flush is writing, up to the end of the file. */
static int64_t writeback_bytes(const Mapping *self, int64_t last)
{
    int64_t page = (int64_t)page_size(), end = (last + page - 1) / page * page;
    return (int64_t)self->writeback_pages * page - (end > self->size ? end - self->size : 0);
}

/* With the GIL again. What was flushed is being written still, until `flush_end`. */
static PyObject *end_commit(Mapping *self, struct store *stores, Py_ssize_t count,
                            const struct commit *done, int64_t last, bool alone)
{
    bool flushed = done->stored && !done->error;
    PyObject *results = settle_stores(self, stores, count, flushed);
    if (results && flushed)
        return Py_BuildValue("(NOLL(LK))", results, alone ? Py_True : Py_False,
                             (long long)writeback_bytes(self, last), (long long)last,
                             (long long)done->seen.size,
                             (unsigned long long)done->seen.links);
    mapping_end_writeback(self);
    if (results && done->error) {
        Py_DECREF(results);
        return os_error(done->error);
    }
    return results;
}

/* One release of the GIL where `write_many`, `flush_begin`, `sync` and `stat` would be four, with
 * a thread's wait for the GIL after each. */
PyObject *mapping_commit(Mapping *self, PyObject *items)
{
    PyObject *result = NULL;
    Py_ssize_t count, loaded = 0;
    bool all;
    struct store *stores = make_stores(items, &count, &loaded, &all);
    if (all && check_stores(self, stores, count)) {
        int64_t last = -1;
        bool absorbed = mapping_absorb_leases(self), clean = absorbed && !self->dirty.members;
        if (!absorbed || (clean && (last = begin_writeback(self, stores, count)) < 0))
            PyErr_NoMemory();
        else if (!clean)
            result = Py_NewRef(Py_None);
        else {
            struct pin pin;
            struct commit done;
            uint64_t sequence = self->sequence;
            bool shared = !self->private_copy;
            /* SAFETY: as in `write_many`. */
            WITHOUT_GIL(pin, self, done = commit_stores(&pin, stores, count, shared););
            self->cut_suspected = self->cut_suspected || done.cut;
            result = end_commit(self, stores, count, &done, last, sequence == self->sequence);
        }
    }
    if (stores)
        release_stores(stores, loaded);
    return result;
}
