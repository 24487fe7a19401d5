#include "gather.h"

#include <sys/uio.h>

#include "accounting.h"
#include "buffer.h"
#include "inline.h"
#include "inline_way.h"
#include "pin.h"
#include "pwrite_watch.h"
#include "receipt.h"
#include "state.h"

/* From this many tasks on, saving each a pwrite(2) is worth a turn of the loop. */
#define GATHER_TASKS 4
/* What the loop thread copies at once, about 0.05 ms; a store beyond it runs by itself. */
#define GATHER_BYTES ((size_t)256 << 10)
/* How many adjoining stores one pwritev(2) takes at most. */
#define RUN_STORES 256

struct gathered { /* GIL; of Mapping.gather until it is taken from there, then the taker's own */
    PyObject *receipt; /* strong; its sequence is 0 until this is applied */
    PyObject *data;    /* strong; what `view` is of: it cannot change size meanwhile */
    Py_buffer view;
    int64_t offset;
    size_t copied;
    bool cached; /* its pages were known to be in memory */
};

/* What became of gathered stores without the GIL. */
struct together { /* the caller's own */
    struct pwrite_watch watch;
    bool cut; /* others seem to have cut the file off meanwhile */
};

static void forget(struct gathered *item)
{
    PyBuffer_Release(&item->view);
    Py_CLEAR(item->data);
    Py_CLEAR(item->receipt);
}

static void forget_all(struct gathered *items, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        forget(&items[i]);
    PyMem_Free(items);
}

int gather_traverse(Mapping *self, visitproc visit, void *arg)
{
    for (Py_ssize_t i = 0; i < self->gather.count; i++) {
        Py_VISIT(self->gather.items[i].receipt);
        Py_VISIT(self->gather.items[i].data);
    }
    return 0;
}

/* Take what is gathered, and leave nothing gathered. The caller passes it to forget_all. */
static struct gathered *take(Mapping *self, Py_ssize_t *count)
{
    struct gathered *items = self->gather.items;
    *count = self->gather.count;
    self->gather.items = NULL;
    self->gather.count = self->gather.room = 0;
    self->gather.bytes = 0;
    self->gather.expected = 0;
    return items;
}

void gather_clear(Mapping *self)
{
    Py_ssize_t count;
    struct gathered *items = take(self, &count);
    forget_all(items, count);
}

/* expect_stores(count): that many tasks wake in this turn, and each waited for a write of its
 * own. */
PyObject *mapping_expect_stores(Mapping *self, PyObject *count)
{
    struct gather *gather = &self->gather;
    Py_ssize_t tasks = PyLong_AsSsize_t(count);
    if (tasks == -1 && PyErr_Occurred())
        return NULL;
    bool adjoin = 2 * gather->adjoining > gather->stores;
    gather->expected = adjoin && tasks >= GATHER_TASKS ? tasks : 0;
    gather->stores /= 2; /* so that one store in between does not decide */
    gather->adjoining /= 2;
    Py_RETURN_NONE;
}

static bool make_room(struct gather *gather)
{
    if (gather->count < gather->room)
        return true;
    Py_ssize_t room = gather->room ? 2 * gather->room : 64;
    struct gathered *items = PyMem_Realloc(gather->items, (size_t)room * sizeof *items);
    if (!items)
        return false;
    gather->items = items;
    gather->room = room;
    return true;
}

static bool is_unlimited(const struct inline_limits *limits)
{
    return limits->bytes == NO_LIMIT && limits->sequence == NO_LIMIT && limits->pages == NO_LIMIT;
}

/* Whether gather.1 holds. The time slice does not count, because the task gives way in any case. */
static bool may_gather(Mapping *self, int64_t offset, Py_ssize_t length)
{
    int64_t now = monotonic_clock();
    return mapping_is_usable(self) && self->inline_writes && is_loop_thread(self) &&
           is_unlimited(&self->inline_limits) && length > 0 &&
           range_is_valid(offset, length, self->reach) &&
           self->gather.bytes + (size_t)length <= GATHER_BYTES &&
           inline_way_of(self, offset, length, now) == WAY_DESCRIPTOR;
}

/* Gather a store. Returns the receipt, without a number, or NULL with or without an exception. */
static PyObject *put_by(Mapping *self, int64_t offset, PyObject *data)
{
    struct gather *gather = &self->gather;
    struct gathered item = {.offset = offset, .data = Py_NewRef(data)};
    if (PyObject_GetBuffer(data, &item.view, PyBUF_SIMPLE)) {
        Py_DECREF(item.data);
        return NULL;
    }
    size_t first, end;
    if (may_gather(self, offset, item.view.len)) { /* after the export (mapping.2) */
        pages_of(offset, item.view.len, &first, &end);
        item.cached = pages_are(self, first, end, PRESENCE_CACHED);
        item.receipt = receipt_make(self, offset, item.view.len, 0);
    }
    if (!item.receipt || !make_room(gather)) { /* after the receipt: to make it may run code, too */
        forget(&item);
        return NULL;
    }
    gather->items[gather->count++] = item;
    gather->bytes += (size_t)item.view.len;
    gather->expected--;
    gather_note(self, offset, offset + item.view.len);
    return Py_NewRef(item.receipt);
}

PyObject *mapping_gather(Mapping *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t offset;
    PyObject *receipt = NULL;
    if (self->gather.expected > 0 && count == 2 && parse_integer(args[0], &offset)) {
        struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
        PyObject *data = buffer_export(state->export_type, args[1], false);
        receipt = data ? put_by(self, offset, data) : NULL;
        Py_XDECREF(data);
        PyErr_Clear();
    }
    if (receipt)
        return receipt;
    self->gather.expected = 0; /* the other tasks need not ask */
    Py_RETURN_NONE;
}

/* Without the GIL, from here on to mapping_store_gathered. */

static int64_t end_of(const struct gathered *item)
{
    return item->offset + (int64_t)item->view.len;
}

static void write_run(const struct pin *pin, struct gathered *items, Py_ssize_t count)
{
    struct iovec pieces[RUN_STORES];
    int error;
    for (Py_ssize_t i = 0; i < count; i++)
        pieces[i] = (struct iovec){items[i].view.buf, (size_t)items[i].view.len};
    size_t done = file_write(pin->fd, pieces, (int)count, (off_t)items->offset, &error);
    for (Py_ssize_t i = 0; i < count; i++) {
        size_t length = (size_t)items[i].view.len;
        items[i].copied = done < length ? done : length;
        done -= items[i].copied;
    }
}

/* Store a run of stores that adjoin by one call, or false if that might read from the disk. */
static bool store_run(const struct pin *pin, struct gathered *items, Py_ssize_t count,
                      struct together *together)
{
    int64_t end = end_of(&items[count - 1]);
    bool cached = true;
    for (Py_ssize_t i = 0; i < count; i++)
        cached = cached && items[i].cached;
    pwrite_watch_begin(&together->watch, monotonic_clock());
    bool writable = pwrite_is_inline(pin, items->offset, end, &cached);
    if (writable)
        write_run(pin, items, count);
    pwrite_watch_end(&together->watch, (size_t)(end - items->offset));
    return writable;
}

static Py_ssize_t run_of(const struct gathered *items, Py_ssize_t count)
{
    Py_ssize_t run = 1;
    while (run < count && run < RUN_STORES && items[run].offset == end_of(&items[run - 1]))
        run++;
    return run;
}

/* Store run by run. Once a call has waited, the rest is left to a worker. */
static void store_together(const struct pin *pin, struct gathered *items, Py_ssize_t count,
                           int64_t reach, struct together *together)
{
    int64_t end = 0, size = file_size(pin->fd);
    struct file_stat before, after;
    for (Py_ssize_t i = 0; i < count; i++)
        end = end_of(&items[i]) > end ? end_of(&items[i]) : end;
    if (size < end) /* pwrite(2) would make it longer */
        return;
    bool last = (end == reach || end == size) && file_stat(pin->fd, &before) == 0;
    for (Py_ssize_t i = 0, run; i < count && !together->watch.waited; i += run) {
        run = run_of(&items[i], count - i);
        if (store_run(pin, &items[i], run, together) || run == 1)
            continue;
        /* Some of them may be writable where all are not. */
        for (Py_ssize_t at = i; at < i + run && !together->watch.waited; at++)
            store_run(pin, &items[at], 1, together);
    }
    together->cut = last && file_stat(pin->fd, &after) == 0 && after.blocks < before.blocks &&
                    after.blocks * 512 < after.size;
}

/* With the GIL again. Give each applied store its number. Returns a list with (receipt, offset,
 * data) of each other one, which the slow way stores from the beginning; NULL with an exception. */
static PyObject *end_gathered(Mapping *self, struct gathered *items, Py_ssize_t count, bool moved)
{
    PyObject *rest = PyList_New(0);
    int64_t now = monotonic_clock();
    for (Py_ssize_t i = 0; rest && i < count; i++) {
        struct gathered *item = &items[i];
        bool whole = item->copied == (size_t)item->view.len && !moved;
        if (!account_store(self, item->offset, item->copied,
                           whole ? PRESENCE_CACHED : PRESENCE_UNKNOWN, now)) {
            Py_CLEAR(rest);
            PyErr_NoMemory();
        } else if (whole) {
            self->counters.inline_writes_done++;
            self->counters.inline_pwrites++;
            receipt_number(item->receipt, account_write(self));
        } else {
            PyObject *left = Py_BuildValue("(OLO)", item->receipt, (long long)item->offset, item->data);
            if (!left || PyList_Append(rest, left))
                Py_CLEAR(rest);
            Py_XDECREF(left);
        }
    }
    return rest;
}

PyObject *mapping_store_gathered(Mapping *self, PyObject *Py_UNUSED(unused))
{
    Py_ssize_t count;
    struct pin pin = {0};
    struct gathered *items = take(self, &count);
    struct together together = {.watch = pwrite_watch(self, monotonic_clock())};
    int64_t end = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        end = end_of(&items[i]) > end ? end_of(&items[i]) : end;
    if (count && mapping_is_usable(self) && self->inline_writes && end <= self->reach) {
        int64_t reach = self->reach;
        pthread_mutex_lock(&self->pwrite_mutex);
        self->pwriting = true;
        /* SAFETY: the buffers are exported to us, the region is held. */
        WITHOUT_GIL(pin, self, store_together(&pin, items, count, reach, &together);
                    pthread_mutex_unlock(&self->pwrite_mutex););
        self->pwriting = false;
        self->cut_suspected = self->cut_suspected || together.cut;
        pwrite_watch_note(self, &together.watch);
    }
    PyObject *rest = end_gathered(self, items, count, pin.moved);
    forget_all(items, count);
    return rest;
}

/* Take a store out; whether it was still gathered. */
PyObject *mapping_withdraw(Mapping *self, PyObject *receipt)
{
    struct gather *gather = &self->gather;
    for (Py_ssize_t i = 0; i < gather->count; i++)
        if (gather->items[i].receipt == receipt) {
            struct gathered item = gather->items[i];
            gather->count--;
            for (Py_ssize_t at = i; at < gather->count; at++)
                gather->items[at] = gather->items[at + 1];
            gather->bytes -= (size_t)item.view.len;
            forget(&item);
            Py_RETURN_TRUE;
        }
    Py_RETURN_FALSE;
}

/* Whether a gathered store meets [start, end). */
PyObject *mapping_gathers(Mapping *self, PyObject *args)
{
    long long start, end;
    if (!PyArg_ParseTuple(args, "LL:gathers", &start, &end))
        return NULL;
    for (Py_ssize_t i = 0; i < self->gather.count; i++)
        if (runs_overlap(start, end, self->gather.items[i].offset, end_of(&self->gather.items[i])))
            Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}
