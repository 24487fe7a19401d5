/* mapping.h: the Python objects of aiommap._native and what their files share.
 *
 * Locking. "GIL" behind a field means: read and written only while holding the GIL. A verb that
 * gives the GIL up first takes a hold (pin_begin), which keeps region and descriptor alive, and
 * then touches nothing but the hold, the caller's buffer and constants.
 *
 * Changes. What a verb checked under the GIL may be another's by the time it has the GIL back. A
 * *change* is a change of size, of the fence, of the region, or closing. Growth that is taken over is
 * none: it adds bytes that nobody has checked for, and all that was checked stays true.
 * Invariants.
 *   1  `generation` moves, under the GIL, when a change begins and when it ends.
 *   2  Whoever has let the GIL go believes nothing that it had checked before: `pin.moved` says
 *        whether there was a change. Then it clips what it enters into the books, repeats what has
 *        no effect, or declines. So does whoever may have run Python code, which is: made or
 *        dropped an object that garbage collection knows, asked for a buffer, called the policy. It
 *        checks after that, not before.
 *   3  A change is one native step (py/resize.c). While it is under way `moving` says from which
 *        byte on pages come and go, and size and fence are as before. From there on no verb touches
 *        the mapping: inline verbs decline, stores of workers count as outside, words wait. Through
 *        the descriptor the file is as it is.
 *   4  Changes come one after the other: they are items of the commit queue (flusher.2), and a second one
 *        is refused. While one is under way nobody takes growth over, so none meets another's fence.
 *   5  No page beyond the size is dirty or ready, and the floor does not lie beyond it: whoever
 *        enters something into the books is clipped, however late it comes.
 *   6  A region is used by those who hold it, and they hold it before they do anything that may
 *        let the GIL go. A pointer to it is replaced before what it pointed at is released.
 */
#ifndef AIOMMAP_PY_MAPPING_H
#define AIOMMAP_PY_MAPPING_H

#include <pyconfig.h>
/* The stable ABI of Python 3.11, so that one wheel serves all later versions; measured to cost the
 * inline verbs nothing (docs/decisions.md). Free-threaded builds have none that we could use. */
#ifndef Py_GIL_DISABLED
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../sys/region.h"
#include "../sys/page_set.h"
#include "../sys/refused.h"
#include "../sys/time_slice.h"

/* Copies up to this size are cheaper than giving the GIL up and getting it back (I2). */
#define GIL_COPY_LIMIT_BYTES ((size_t)64 << 10)
/* A read of this size stops the loop for about 0.2 ms; longer ones go to a worker. */
#define INLINE_READ_LIMIT_BYTES ((size_t)1 << 20)
#define INLINE_WRITE_LIMIT_BYTES GIL_COPY_LIMIT_BYTES
/* From here on mincore(2) and a guarded copy are faster than preadv2(2): docs/decisions.md. */
#define MAPPED_READ_BYTES ((size_t)32 << 10)
/* Residency is checked again for every piece, so that a check never is older than ~20 us. */
#define MAPPED_READ_PIECE_BYTES ((size_t)256 << 10)
/* A trip that is nowhere. */
#define NO_LIMIT INT64_MAX
/* How long a page that was stored to is trusted to be still in memory. */
#define READY_NS INT64_C(1000000000)

/* Bytes [start, end) of the file. */
struct run { /* the caller's own */
    int64_t start, end;
};

struct spans { /* GIL */
    struct run *runs; /* sorted and disjoint */
    size_t count;
};

struct counters { /* GIL */
    uint64_t inline_reads, fell_back_reads, inline_writes_done, fell_back_writes, faults;
};

/* What inline stores may reach without asking the flush policy: the one that would get there
 * answers None, and the slow way decides. */
struct inline_limits { /* GIL */
    uint64_t bytes;    /* of written_bytes */
    uint64_t sequence; /* of sequence */
    uint64_t pages;    /* dirty or being flushed; this many are still allowed */
};

typedef struct lease Lease;

typedef struct {
    PyObject_HEAD
    struct region *region; /* GIL; NULL for an empty file and once closed */
    int fd;                /* GIL; -1 once closed */
    bool closed;           /* GIL */
    bool writable;         /* constant: stores are allowed */
    bool private_copy;     /* constant: mode "c", stores never reach the file */
    bool huge;             /* constant: huge pages were asked for */
    bool nowait;           /* GIL; latched off when the file system refuses RWF_NOWAIT */
    bool in_memory;        /* constant: tmpfs and the like, where pread(2) never waits */
    bool layered;          /* constant: on overlayfs, and opened without having it copied up */
    int64_t birth;         /* constant: of the inode that is mapped, if layered */
    bool residency_visible; /* constant: mincore(2) tells the truth about this file */
    bool cut_suspected;    /* GIL; a flush has to look whether what it wrote is there still */
    bool declining;        /* GIL; inline verbs answer None: it is being closed, or a test says so */
    bool inline_writes;    /* GIL; off for policy "always", after a failed flush, while closing */
    int64_t size;          /* GIL; bytes of the file that verbs may address; see mapping_size */
    size_t pages;          /* GIL; the whole pages that they take */
    uint64_t generation;   /* GIL; mapping.1 */
    int64_t moving;        /* GIL; mapping.3; INT64_MAX while no change is under way */
    int64_t reach;         /* GIL; as far as verbs may touch it: the lesser of size and moving */
    int64_t min_kept_length;         /* GIL; what closing may not cut off: asked for, or written by a verb */
    struct damage damage;  /* atomic; written by the signal handler */
    struct growth growth;  /* atomic; written by the signal handler */
    bool growth_seen;      /* GIL; the file grew since take_growth was asked */
    int64_t fence;         /* GIL; where private zero pages begin, INT64_MAX without any */
    struct region *growable; /* GIL; where stores beyond the end make the file longer, or NULL */
    Py_ssize_t growable_leases; /* GIL; how many leases on such a region there are */
    struct region *quiet;  /* GIL; as long as region and read-only, for futexes; NULL until needed */
    unsigned long fork_generation; /* constant */
    unsigned long pins; /* GIL; holds that are out; the descriptor outlives them */
    int fd_to_close;       /* GIL; the descriptor of a closed mapping, for the last hold */
    struct pages dirty;    /* GIL; stored to since the last flush; in "c": private pages */
    struct pages ready;    /* GIL; stored to, or a word in it loaded, within READY_NS: present */
    int64_t ready_since;   /* GIL; when `ready` was last emptied */
    int64_t dirty_since;   /* GIL; when the oldest page of `dirty` was stored to; 0 when clean */
    int64_t writeback_start, writeback_end; /* GIL; the range that a flush is writing */
    int64_t writeback_since;  /* GIL; dirty_since of what it is writing */
    size_t writeback_pages;   /* GIL; how many pages it is writing */
    int64_t queued_start, queued_end; /* GIL; bounds of the writes queued for a worker */
    struct spans locked;   /* GIL; ranges pinned by mlock */
    uint64_t sequence;     /* GIL; number of the newest applied write */
    uint64_t durable_sequence; /* GIL; every write up to this one is durable */
    uint64_t written_bytes; /* GIL; bytes of all applied writes */
    struct inline_limits inline_limits;      /* GIL; where inline stores have to stop and ask */
    struct counters counters; /* GIL */
    Lease *leases;         /* GIL; live leases, newest first */
    Py_ssize_t lease_count; /* GIL; how many there are */
    Py_ssize_t writable_leases; /* GIL; how many of them are writable */
    uint64_t ended_leases; /* GIL; how many writable ones there were */
    PyObject *owner;       /* GIL; what receipts refer to; may be NULL */
    PyTypeObject *receipt_type; /* GIL; may be NULL */
    const struct time_slice *loop_slice; /* GIL; of the thread its loop runs in; never read through */
} Mapping;

struct lease {
    PyObject_HEAD
    Mapping *mapping;      /* constant, strong */
    struct region *region; /* constant, one of its holders; NULL when length is 0 */
    int64_t offset;        /* constant */
    Py_ssize_t length;     /* constant */
    bool writable;         /* constant */
    bool linked;           /* GIL; it is one of Mapping.leases: all above is as it will be */
    PyObject *place;       /* constant, strong; a string that says where it was taken, or None */
    Lease *next, *previous; /* GIL; links of Mapping.leases */
};

typedef struct {
    PyObject_HEAD
    PyObject *owner;   /* constant, strong */
    int64_t offset;    /* constant */
    int64_t length;    /* constant */
    uint64_t sequence; /* constant */
    bool settled;      /* GIL; known durable by a flush of its own range */
} Receipt;

/* Per-module state: the heap types. */
struct native_state { /* constant once the module has been executed */
    PyTypeObject *mapping_type, *lease_type, *receipt_type;
    PyTypeObject *word_type, *word_array_type, *wakeup_type, *export_type;
    PyTypeObject *log_record_type, *log_cursor_type, *log_writer_type;
    PyObject *out_of_bounds; /* OutOfBoundsError */
};

/* What a verb may use while it does not hold the GIL. */
struct pin { /* the caller's own */
    Mapping *mapping;
    struct region *region;
    int fd;
    uint64_t generation; /* at its beginning */
    bool moved;          /* set at its end: there was a change, or one is under way (mapping.2) */
};

/* All of these need the GIL. */
void object_free(void *self); /* the last step of every tp_dealloc */
void pin_begin(struct pin *pin, Mapping *mapping);
void pin_end(struct pin *pin);
void pin_instead(struct pin *pin, struct region *region); /* of the same mapping */
void region_release(struct region *region);
void descriptor_close(int fd);
/* In a forked child, for whoever closes: end the holds of threads that are not there. */
void forget_pins(Mapping *self);
bool mapping_is_usable(const Mapping *self); /* open, of this process, whole, not declining */
bool mapping_check(const Mapping *self);     /* open, of this process; with an exception set */
struct region_options mapping_options(Mapping *self); /* for another region of its */
/* The size, once growth that the signal handler brought about has been taken into account. */
int64_t mapping_size(Mapping *self);
/* I3: no address is formed before this said true. */
static inline bool range_is_valid(int64_t offset, int64_t length, int64_t limit)
{
    return offset >= 0 && length >= 0 && offset <= limit && length <= limit - offset;
}
void mapping_set_size(Mapping *self, int64_t size);
/* Say from which byte on a change is under way (mapping.3); INT64_MAX when it is over. */
void mapping_set_moving(Mapping *self, int64_t from);
bool mapping_range(const Mapping *self, int64_t offset, int64_t length); /* with an exception */
/* What became of a range while the GIL was away; asked by who did not get what it wanted (mapping.2). */
enum meanwhile {
    RANGE_SAME,  /* nothing: it is to blame */
    RANGE_MOVED, /* it is inside still, and asking again may do */
    RANGE_GONE,  /* it is not, and there is an exception */
};
enum meanwhile mapping_meanwhile(const Mapping *self, const struct pin *pin, int64_t offset,
                                 int64_t length);
/* Wait, without the GIL, until the change that is under way is over, if one is. */
void mapping_settled(Mapping *self);
/* Parse (offset, length) of a verb on a range, and check it. */
bool parse_range(Mapping *self, PyObject *args, long long *offset, long long *length);
PyObject *os_error(int number);
PyObject *list_of_runs(const struct run *runs, Py_ssize_t count); /* [(start, end), ...] */
/* The whole pages that bytes [0, end) take; and those that a range touches, false if it is empty. */
size_t pages_for(int64_t end);
bool pages_of(int64_t offset, int64_t length, size_t *first, size_t *end);
/* Mark those of pages [first, end) that the file has (mapping.5): as stored to from this moment on, and as
 * in memory. False when out of memory. */
bool mapping_ready(Mapping *self, size_t first, size_t end);
bool mapping_dirty(Mapping *self, size_t first, size_t end, int64_t now);
/* Note that `stored` bytes were stored at a time, and whether their pages can now be stored to
 * without a fault. Behind a fault nothing is dirty. False when out of memory. */
bool mapping_stored(Mapping *self, int64_t offset, size_t stored, bool ready, int64_t now);
void mapping_count(Mapping *self, int64_t offset, size_t stored); /* the same, but for the pages */
/* A writable lease may be stored through at any moment: its pages are dirty while it lives. False
 * when out of memory. */
bool mapping_absorb_leases(Mapping *self);
/* Take the pages of [first, end) out of the dirty ones, as those that a flush is writing. */
void mapping_begin_writeback(Mapping *self, size_t first, size_t end);
void mapping_end_writeback(Mapping *self); /* the flush is over */
/* Whether pages [first, end) were touched within READY_NS. */
bool mapping_is_ready(Mapping *self, size_t first, size_t end, int64_t now);
PyObject *receipt_make(Mapping *self, int64_t offset, int64_t length, uint64_t sequence);
static inline bool runs_overlap(int64_t start, int64_t end, int64_t other_start, int64_t other_end)
{
    return start < other_end && other_start < end;
}
bool spans_cover(const struct spans *spans, int64_t offset, int64_t end);

/* Whether the mapping shows the file that the descriptor reads: a mapping of the lower layer of an
 * overlayfs stays there when the file is copied up. Asks the inode, and waits for nothing. */
static inline bool mapping_is_current(const Mapping *self)
{
    return !self->layered || file_birth(self->fd) == self->birth;
}

/* Whether mincore(2) can be asked about this file. */
static inline bool sees_residency(const Mapping *self)
{
    return self->residency_visible && !call_was_refused(CALL_MINCORE);
}

extern PyType_Spec mapping_spec, lease_spec, receipt_spec, word_spec, word_array_spec, wakeup_spec;
extern PyType_Spec export_spec;
extern unsigned long fork_generation; /* grows in every forked child */
struct time_slice *thread_time_slice(void);

/* py/buffer.c. May run the caller's code, so look at the mapping afterwards. */
/* Export memory to store, or to fill, until PyBuffer_Release; false with an exception. */
bool buffer_take(PyObject *data, Py_buffer *view, bool writable);
/* The same as an object: bytes that cannot change as they are, else a memoryview of bytes. */
PyObject *buffer_export(PyTypeObject *export_type, PyObject *data, bool writable);

/* py/inline.c: verbs of the loop thread; they never wait. */
PyObject *mapping_read_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_read_into_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_read_nowait(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_write_inline(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_stage(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_write_now(Mapping *self, PyObject *const *args, Py_ssize_t count);

/* py/write.c, py/blocking.c, py/paging.c: verbs of worker threads; they may wait, without the
 * GIL. */
PyObject *mapping_read(Mapping *self, PyObject *args);
PyObject *mapping_read_into(Mapping *self, PyObject *args);
PyObject *mapping_write_many(Mapping *self, PyObject *items);
PyObject *mapping_commit(Mapping *self, PyObject *items);
PyObject *mapping_sync(Mapping *self, PyObject *args);
PyObject *mapping_stat(Mapping *self, PyObject *unused);
PyObject *mapping_sync_range(Mapping *self, PyObject *args);
PyObject *mapping_start_writeback(Mapping *self, PyObject *args);
PyObject *mapping_read_ahead(Mapping *self, PyObject *args);
PyObject *mapping_punch_hole(Mapping *self, PyObject *args);
PyObject *mapping_populate(Mapping *self, PyObject *args);
PyObject *mapping_advise(Mapping *self, PyObject *args);
PyObject *mapping_lock(Mapping *self, PyObject *args);
PyObject *mapping_lock_later(Mapping *self, PyObject *args);
PyObject *mapping_unlock(Mapping *self, PyObject *args);
PyObject *mapping_residency(Mapping *self, PyObject *args);
PyObject *mapping_cachestat(Mapping *self, PyObject *args);

/* py/dirty.c: what is dirty, and what a flush in flight covers. */
PyObject *mapping_flush_begin(Mapping *self, PyObject *args);
PyObject *mapping_flush_end(Mapping *self, PyObject *failed);
PyObject *mapping_dirty_runs(Mapping *self, PyObject *unused);
PyObject *mapping_dirty_bytes(Mapping *self, PyObject *unused);
PyObject *mapping_would_dirty(Mapping *self, PyObject *args);
PyObject *mapping_set_inline_limits(Mapping *self, PyObject *args);
PyObject *mapping_set_queued(Mapping *self, PyObject *args);
PyObject *mapping_set_locked(Mapping *self, PyObject *ranges);

/* py/resize.c */
PyObject *mapping_rebase(Mapping *self, PyObject *args);
PyObject *mapping_truncate(Mapping *self, PyObject *args);
PyObject *mapping_extend(Mapping *self, PyObject *args);
PyObject *mapping_adopt(Mapping *self, PyObject *args);

/* py/growth.c */
PyObject *mapping_lease_growable(Mapping *self, PyObject *args);
PyObject *mapping_take_growth(Mapping *self, PyObject *unused);
PyObject *mapping_stop_growth(Mapping *self, PyObject *unused);
PyObject *mapping_get_file_end(Mapping *self, void *closure);
PyObject *mapping_get_grown(Mapping *self, void *closure);
PyObject *mapping_get_growing(Mapping *self, void *closure);
PyObject *mapping_get_reserved_end(Mapping *self, void *closure);

/* py/lease.c: made first, and then bound to a range that is checked when nothing else can happen
 * any more (mapping.2). Binding takes a holder of the region; false with an exception. */
Lease *lease_make(Mapping *self, PyObject *place);
bool lease_bind(Lease *lease, struct region *region, int64_t offset, int64_t length,
                bool writable);
PyObject *mapping_lease(Mapping *self, PyObject *args);

/* Run a call without the GIL while a hold keeps the mapping's parts alive. */
#define WITHOUT_GIL(pin, mapping, statement)                                                     \
    do {                                                                                          \
        pin_begin(&(pin), (mapping));                                                           \
        Py_BEGIN_ALLOW_THREADS                                                                    \
        statement;                                                                                \
        Py_END_ALLOW_THREADS                                                                      \
        pin_end(&(pin));                                                                        \
    } while (0)

#endif
