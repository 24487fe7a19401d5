/* write.h: stores that worker threads make without the GIL, and that may wait. */
#ifndef AIOMMAP_PY_WRITE_H
#define AIOMMAP_PY_WRITE_H

#include "mapping.h"
#include "pin.h"
#include "pwrite_watch.h"

struct store { /* the caller's own; written by write.c */
    Py_buffer data;
    int64_t offset;
    bool outside;  /* the file was made shorter since the range was checked: nothing is stored */
    bool ready;    /* its pages are known to be present and writable; result: whether they are */
    size_t copied; /* result */
    int error;     /* result: why the kernel refused the rest; 0 for a fault */
};

struct stores { /* the caller's own; written by write.c */
    struct store *items;
    Py_ssize_t count;
    Py_ssize_t loaded; /* how many buffers have to be released */
    struct lock_watch lock;
    bool cut;          /* result: others seem to have cut the file off meanwhile */
};

/* Load a list of (offset, buffer) and check it against the file; false with an exception. The
 * caller calls stores_release in either case. */
bool stores_load(Mapping *self, PyObject *list, struct stores *stores);
void stores_release(struct stores *stores);
/* Without the GIL: apply the stores in order. */
void stores_apply(const struct pin *pin, struct stores *stores, bool shared);
/* With the GIL again: account for the stores. Returns a list with a receipt for each, or (copied,
 * error) for one that stopped short; NULL with an exception. If the stores are `flushed` already,
 * they make no page dirty. */
PyObject *stores_account(Mapping *self, const struct stores *stores, bool flushed);

static inline bool store_is_whole(const struct store *store)
{
    return !store->outside && store->copied == (size_t)store->data.len;
}

PyObject *mapping_write_many(Mapping *self, PyObject *list);

#endif
