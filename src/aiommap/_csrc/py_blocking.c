/* py_blocking.c: reads, writes and syncs of worker threads. They may wait, without the GIL (I2).
 *
 * Verbs that copy report how much they copied; a number short of the request is a fault, and the
 * caller finds out why. Errors of system calls are raised as OSError.
 */
#include "guard.h"
#include "py_mapping.h"

#include <errno.h>

/* Fill `to` from the file, or from the mapping where only the mapping has the bytes. */
static ssize_t read_waiting(Mapping *self, char *to, int64_t offset, size_t length)
{
    struct hold hold;
    ssize_t got;
    size_t first, end;
    pages_of(offset, (int64_t)length, &first, &end);
    if (self->private_copy && pages_has_any(&self->dirty, first, end))
        WITHOUT_GIL(hold, self,
                    got = (ssize_t)region_copy_out(hold.region, (size_t)offset, to, length););
    else
        WITHOUT_GIL(hold, self, got = file_read(hold.fd, to, length, (off_t)offset););
    if (got >= 0 && (size_t)got < length)
        self->counters.faults++;
    return got;
}

PyObject *mapping_read(Mapping *self, PyObject *args)
{
    long long offset, length;
    if (!PyArg_ParseTuple(args, "LL:read", &offset, &length) ||
        !mapping_range(self, offset, length))
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!bytes || length == 0)
        return bytes;
    ssize_t got = read_waiting(self, PyBytes_AsString(bytes), offset, (size_t)length);
    if (got < 0) {
        Py_DECREF(bytes);
        return os_error((int)-got);
    }
    if (got == length)
        return bytes;
    PyObject *part = PyBytes_FromStringAndSize(PyBytes_AsString(bytes), got);
    Py_DECREF(bytes);
    return part;
}

PyObject *mapping_read_into(Mapping *self, PyObject *args)
{
    long long offset;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "Lw*:read_into", &offset, &view))
        return NULL;
    ssize_t got = 0;
    bool valid = mapping_range(self, offset, view.len);
    if (valid && view.len)
        got = read_waiting(self, view.buf, offset, (size_t)view.len);
    PyBuffer_Release(&view);
    if (!valid)
        return NULL;
    return got < 0 ? os_error((int)-got) : PyLong_FromSsize_t(got);
}

struct store { /* the caller's own */
    Py_buffer data;
    int64_t offset;
    bool outside;  /* the file was made shorter since the range was checked: nothing is stored */
    bool ready;    /* its pages are known to be present and writable; result: whether they are */
    size_t copied; /* result */
    int error;     /* result: what the kernel said when it refused the rest; 0 for a fault */
};

/* Without the GIL. Every page is made writable before the first byte is stored, so that a full
 * disk or a truncated file is found while nothing has been changed yet. */
static void store_mapped(const struct region *region, struct store *store)
{
    size_t length = (size_t)store->data.len, offset = (size_t)store->offset;
    for (size_t at = 0; !store->ready && at < length;) {
        ssize_t step = region_populate(region, offset + at, length - at, true);
        if (step == -EINVAL || step == -ENOSYS)
            break; /* no MADV_POPULATE_WRITE before Linux 5.14: the guard has to do */
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
    return !store->outside && !store->ready && store->data.len &&
           store->offset == last->offset + last->data.len;
}

/* Without the GIL. Write stores that lie one behind the other, from the first on; how many. */
static Py_ssize_t store_through(int fd, struct store *stores, Py_ssize_t count)
{
    enum { RUN = 64 };
    struct iovec pieces[RUN];
    size_t total = 0;
    Py_ssize_t run = 0;
    do {
        pieces[run] = (struct iovec){stores[run].data.buf, (size_t)stores[run].data.len};
        total += (size_t)stores[run++].data.len;
    } while (run < count && run < RUN && is_next(&stores[run], &stores[run - 1]) &&
             total + (size_t)stores[run].data.len <= PIECE_BYTES);
    int error = 0;
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

/* Without the GIL. Stores into a file with all of its blocks go through the descriptor: that makes
 * only their own blocks dirty, where a store through the mapping makes whole folios so, and a flush
 * then writes up to a megabyte for each (docs/decisions.md). */
static void apply_stores(const struct hold *hold, struct store *stores, Py_ssize_t count,
                         bool shared)
{
    int64_t end = 0;
    guard_refresh();
    for (Py_ssize_t i = 0; i < count; i++)
        if (!stores[i].outside && stores[i].offset + stores[i].data.len > end)
            end = stores[i].offset + stores[i].data.len;
    bool solid = shared && file_is_solid(hold->fd, (off_t)end);
    for (Py_ssize_t i = 0; i < count;) {
        if (stores[i].outside || !stores[i].data.len)
            i++;
        else if (solid && !stores[i].ready)
            i += store_through(hold->fd, &stores[i], count - i);
        else
            store_mapped(hold->region, &stores[i++]);
    }
}

static bool load_stores(Mapping *self, PyObject *items, struct store *stores, Py_ssize_t *loaded)
{
    for (Py_ssize_t i = 0; i < PyList_Size(items); i++) {
        long long offset;
        struct store *store = &stores[i];
        if (!PyArg_ParseTuple(PyList_GetItem(items, i), "Ly*:write_many", &offset, &store->data))
            return false;
        ++*loaded;
        size_t first, end;
        store->offset = offset;
        store->outside = !range_is_valid(offset, store->data.len, self->size);
        if (store->outside)
            continue;
        store->ready = !pages_of(offset, store->data.len, &first, &end) ||
                       pages_has_all(&self->ready, first, end);
    }
    return true;
}

/* Count one store, and make its receipt, or (copied, error) for one that stopped short. */
static PyObject *settle_store(Mapping *self, struct store *store, int64_t now)
{
    bool whole = !store->outside && store->copied == (size_t)store->data.len;
    if (!mapping_stored(self, store->offset, store->copied, whole && store->ready, now))
        return PyErr_NoMemory();
    if (!whole) {
        self->counters.faults++;
        return Py_BuildValue("(ni)", (Py_ssize_t)store->copied, store->error);
    }
    self->sequence += store->copied > 0;
    return receipt_make(self, store->offset, store->data.len, self->sequence);
}

static PyObject *settle_stores(Mapping *self, struct store *stores, Py_ssize_t count)
{
    PyObject *results = PyList_New(count);
    int64_t now = slice_clock();
    for (Py_ssize_t i = 0; results && i < count; i++) {
        PyObject *result = settle_store(self, &stores[i], now);
        if (!result)
            Py_CLEAR(results);
        else
            PyList_SetItem(results, i, result);
    }
    return results;
}

PyObject *mapping_write_many(Mapping *self, PyObject *items)
{
    if (!PyList_CheckExact(items))
        return PyErr_Format(PyExc_TypeError, "write_many needs a list of (offset, buffer)");
    PyObject *results = NULL;
    Py_ssize_t count = PyList_Size(items), loaded = 0;
    struct store *stores = PyMem_Calloc(count ? (size_t)count : 1, sizeof *stores);
    if (!stores)
        return PyErr_NoMemory();
    if (mapping_check(self) && load_stores(self, items, stores, &loaded)) {
        struct hold hold;
        /* SAFETY: the buffers are exported to us until they are released below, so nobody can
         * free or move them while the copy runs. */
        WITHOUT_GIL(hold, self, apply_stores(&hold, stores, count, !self->private_copy););
        results = settle_stores(self, stores, count);
    }
    for (Py_ssize_t i = 0; i < loaded; i++)
        PyBuffer_Release(&stores[i].data);
    PyMem_Free(stores);
    return results;
}

PyObject *mapping_sync(Mapping *self, PyObject *args)
{
    int metadata, error;
    if (!PyArg_ParseTuple(args, "p:sync", &metadata) || !mapping_check(self))
        return NULL;
    struct hold hold;
    WITHOUT_GIL(hold, self, error = file_sync(hold.fd, metadata););
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

PyObject *mapping_look(Mapping *self, PyObject *args)
{
    int error;
    PyObject *encoded;
    struct hold hold;
    struct sighting open_file, named;
    if (!PyArg_ParseTuple(args, "O&:look", PyUnicode_FSConverter, &encoded))
        return NULL;
    if (!mapping_check(self)) {
        Py_DECREF(encoded);
        return NULL;
    }
    const char *path = PyBytes_AsString(encoded);
    WITHOUT_GIL(hold, self, error = file_look(hold.fd, path, &open_file, &named););
    Py_DECREF(encoded);
    if (error)
        return os_error(error);
    return Py_BuildValue("(LKK)", (long long)open_file.size, (unsigned long long)named.device,
                         (unsigned long long)named.inode);
}

/* What a verb on a non-empty range of the mapping or of the descriptor has to call. Length 0 is
 * left out here: to several system calls it would mean "to the end". */
#define RANGE_VERB(name, call)                                                                    \
    PyObject *name(Mapping *self, PyObject *args)                                                 \
    {                                                                                             \
        long long offset, length;                                                                 \
        int error = 0;                                                                            \
        struct hold hold;                                                                         \
        if (!parse_range(self, args, &offset, &length))                                           \
            return NULL;                                                                          \
        if (length)                                                                               \
            WITHOUT_GIL(hold, self, error = call;);                                               \
        if (error)                                                                                \
            return os_error(error);                                                               \
        Py_RETURN_NONE;                                                                           \
    }

RANGE_VERB(mapping_sync_range, region_sync(hold.region, (size_t)offset, (size_t)length))
RANGE_VERB(mapping_start_writeback, file_start_writeback(hold.fd, (off_t)offset, (off_t)length))
RANGE_VERB(mapping_read_ahead, file_read_ahead(hold.fd, (off_t)offset, (size_t)length))
RANGE_VERB(mapping_punch_hole, file_punch_hole(hold.fd, (off_t)offset, (off_t)length))
RANGE_VERB(mapping_lock, region_lock(hold.region, (size_t)offset, (size_t)length, true))
RANGE_VERB(mapping_unlock, region_lock(hold.region, (size_t)offset, (size_t)length, false))
