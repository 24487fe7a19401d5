/* mapping.h: the Mapping, an open file and the memory over it; and the Lease, which exports a part
 * of that memory.
 *
 * Locking. "GIL" at a field means: it is read and written only by a thread that holds the GIL. A
 * verb that lets the GIL go first takes a pin (py/pin.h), which keeps region and descriptor alive.
 * Until it has the GIL back it touches only the pin, the caller's buffer and constants.
 *
 * Owners. The files that a section names write its fields, and Python does where the section says
 * so. mapping_new in py/mapping_type.c sets the first values.
 *
 * Changes. A verb checks its range under the GIL. When it has let the GIL go and got it back, the
 * file may have changed. A *change* is a change of the size, of the fence or of the region, or the
 * closing of the mapping. Growth that the signal handler brings about is no change: it only adds
 * bytes, and every check that was made stays true.
 *
 * Invariants.
 *   1  `generation` moves, under the GIL, when a change begins and when it ends.
 *   2  A verb that has let the GIL go trusts no check that it made before. `pin.moved` says whether
 *      there was a change. Then the verb clips what it enters into the accounting, repeats a call
 *      that may be made twice, or declines. The same holds for a verb that may have run Python
 *      code: one that made or dropped an object that garbage collection tracks, asked for a buffer,
 *      or called the policy. Such a verb checks afterwards, not before.
 *   3  A change is one native step (py/resize.c). While it is under way, `moving` is the first byte
 *      whose pages come and go, and size and fence have their old values. No verb touches the
 *      mapping from that byte on: inline verbs decline, stores of workers count as outside, words
 *      wait. Verbs may use the descriptor, which shows the file as it is.
 *   4  Changes come one after the other: they are items of the commit queue (flusher.2), and a
 *      second one is refused. While one is under way nobody takes growth over, so neither of the
 *      two meets the fence of the other.
 *   5  No page beyond the size is dirty or ready, and the minimum kept length does not lie beyond
 *      the size. Whatever enters the accounting is clipped, however late it comes.
 *   6  A thread uses a region only while it holds a reference, and it takes the reference before it
 *      does anything that may let the GIL go. A pointer to a region is replaced before the
 *      reference behind it is released.
 */
#ifndef AIOMMAP_PY_MAPPING_H
#define AIOMMAP_PY_MAPPING_H

#include <pthread.h>

#include "api.h"
#include "runs.h"

#include "../sys/file_io.h"
#include "../sys/forks.h"
#include "../sys/page_set.h"
#include "../sys/refused.h"
#include "../sys/region.h"
#include "../sys/time_slice.h"

/* A limit that no count reaches. */
#define NO_LIMIT INT64_MAX

/* The flags of Mapping(fd, size, capacity, flags): what the caller knows of the file. */
enum mapping_flags {
    MAPPING_WRITABLE = 1 << 0,          /* stores are allowed */
    MAPPING_PRIVATE_COPY = 1 << 1,      /* mode "c": stores never reach the file */
    MAPPING_HUGE = 1 << 2,              /* the caller asked for huge pages */
    MAPPING_NOWAIT = 1 << 3,            /* the file system has reads that do not wait */
    MAPPING_IN_MEMORY = 1 << 4,         /* tmpfs and the like: pread(2) never waits */
    MAPPING_RESIDENCY_VISIBLE = 1 << 5, /* mincore(2) tells the truth about this file */
    MAPPING_SPARSE = 1 << 6,            /* stores that make the file longer reserve no blocks */
    MAPPING_LOCAL = 1 << 7,             /* pwrite(2) ends in the page cache, and asks no server */
    MAPPING_STABLE_PAGES = 1 << 8,      /* a store waits for the write-back of its folio */
};

struct counters { /* GIL */
    uint64_t inline_reads, fell_back_reads;       /* written by inline.c */
    uint64_t inline_writes_done, fell_back_writes; /* written by gather.c and inline_write.c */
    uint64_t inline_pwrites; /* those that were pwrite(2); written by gather.c and inline_write.c */
    uint64_t faults; /* written by inline.c, inline_write.c, write.c, blocking.c and words.c */
};

/* Counts that an inline store may not reach. A store that would reach one answers None, and the
 * slow way asks the flush policy. */
struct inline_limits { /* GIL; written by inline_write.c */
    uint64_t bytes;    /* of written_bytes */
    uint64_t sequence; /* of sequence */
    uint64_t pages;    /* dirty or in writeback; this many are still allowed */
};

/* Stores of tasks that woke together (py/gather.h). */
struct gather { /* GIL; written by gather.c */
    struct gathered *items; /* in the order in which they were submitted */
    Py_ssize_t count, room;
    size_t bytes;
    Py_ssize_t expected;        /* how many more are gathered in this turn */
    uint64_t stores, adjoining; /* of late: inline stores, and those that adjoined the one before */
    int64_t last_end;           /* where the last one ended */
};

typedef struct lease Lease;

typedef struct {
    PyObject_HEAD

    /* Constant. */
    bool writable;
    bool private_copy;
    bool huge;
    bool in_memory;
    bool local;
    bool stable_pages;
    bool residency_visible;
    bool layered;  /* on overlayfs, and opened without having the file copied up */
    int64_t birth; /* when the mapped inode came to be, if layered */
    unsigned long fork_generation;

    /* GIL; written by mapping_type.c. */
    int fd;        /* -1 once closed */
    int append_fd; /* another one of the same file, with O_APPEND; -1 without it and once closed */
    bool closed;
    PyObject *owner;            /* what receipts refer to; may be NULL */
    PyTypeObject *receipt_type; /* may be NULL */
    const struct time_slice *loop_slice; /* that of the loop thread; compared, never read through */

    /* GIL; written by Python. */
    bool declining;     /* inline verbs answer None: it is being closed, or a test says so */
    bool inline_writes; /* off for policy "always", after a failed flush, while closing */
    bool flush_expected; /* the policy flushes without being asked */
    bool remapping; /* locked pages are being mapped again; none counts as locked meanwhile */
    uint64_t durable_sequence; /* every write up to this one is durable */

    /* GIL; written by mapping_type.c and resize.c. */
    struct region *region; /* NULL for an empty file and once closed */

    /* GIL; written by mapping_type.c, resize.c and futex.c. */
    struct region *quiet; /* as long as region, but read-only, for futexes; NULL until needed */

    /* GIL; written by mapping_type.c and growable.c. */
    struct region *growable; /* where stores beyond the end make the file longer, or NULL */

    /* GIL; written by resize.c. */
    int64_t size;        /* bytes of the file that verbs may address; see mapping_size */
    size_t pages;        /* how many pages they take */
    int64_t moving;      /* mapping.3; INT64_MAX while no change is under way */
    int64_t reach;       /* where verbs have to stop: the lesser of size and moving */
    int64_t fence;       /* where private zero pages begin; INT64_MAX without any */
    uint64_t generation; /* mapping.1 */
    bool growth_seen;    /* the file has grown since the last call of take_growth */

    /* GIL; written by accounting.c, resize.c and Python. */
    int64_t min_kept_length; /* what closing may not cut off: asked for, or written by a verb */

    /* GIL; written by accounting.c. */
    struct pages dirty;    /* stored to since the last flush; in mode "c": private pages */
    struct pages ready;    /* stored to through the mapping within READY_NS: present, writable */
    struct pages cached;   /* written or loaded within READY_NS: present */
    struct pages locked;   /* mlock(2) keeps them in memory */
    int64_t ready_since;   /* when `ready` and `cached` were last emptied */
    bool dirty_folios;     /* some of `dirty` was stored to through the mapping */
    int64_t dirty_since;   /* when the oldest page of `dirty` was stored to; 0 when clean */
    int64_t writeback_start, writeback_end; /* the range that a flush is writing */
    int64_t writeback_since; /* dirty_since of that range */
    size_t writeback_pages;  /* how many pages the flush is writing */
    uint64_t flush_sequence; /* `sequence` when the last flush of anything began */
    uint64_t epoch_writes;   /* how many writes came between two flushes lately */
    uint64_t sequence;       /* number of the newest applied write */
    uint64_t written_bytes;  /* bytes of all applied writes */

    /* GIL; written by inline.c. */
    bool nowait; /* cleared for good when the file system refuses RWF_NOWAIT */
    unsigned suspicious; /* this many reads to come may be cold, as one was lately */
    unsigned cold_answers;  /* this many in a row said: not in memory; up to COLD_ANSWERS */
    unsigned unasked_reads; /* reads since then; most do not ask (inline.c); wraps */

    /* GIL; written by gather.c and inline_write.c. */
    struct inline_limits inline_limits;
    int64_t queued_start, queued_end; /* bounds of the writes that wait for a worker */
    bool pwriting; /* the loop thread is in pwrite(2), without the GIL */
    struct gather gather; /* written by gather.c */

    /* GIL; written by pwrite_watch.c. */
    int suspected_pwrites; /* one was slow: see whether this many more wait */
    int64_t watched_until; /* one took long: until then see whether another one sleeps */
    int64_t blocked_until; /* one has waited: until then stores go to a worker */
    int64_t spun_until;    /* a worker spun for the inode's lock: until then that counts */
    int64_t held_until;    /* a second one spun, too: until then workers avoid that lock */

    /* A lock; written by gather.c, inline_write.c and resize.c. The loop thread holds it during
     * pwrite(2), which would make a file as long again that a change just cut off. A change only
     * waits for it. */
    pthread_mutex_t pwrite_mutex;

    /* GIL; written by gather.c, inline_write.c, write.c and Python. */
    bool cut_suspected; /* a flush has to find out whether the file still has what was written */

    /* GIL; written by lease.c. */
    Lease *leases;             /* live leases, newest first */
    Lease *oldest_lease;       /* the last of them */
    Py_ssize_t lease_count;
    Py_ssize_t writable_leases; /* how many of them are writable */
    Py_ssize_t growable_leases; /* how many of them are on a growable region */
    uint64_t ended_leases;      /* how many writable ones have ended */

    /* GIL; written by pin.c. */
    unsigned long pins; /* how many there are; the descriptor outlives them */

    /* GIL; written by pin.c and mapping_type.c. */
    int fds_to_close[2]; /* those of a closed mapping; the end of the last pin closes them */

    /* See the struct. */
    struct damage damage;     /* atomic; written by survive.c */
    struct growth growth;     /* atomic; written by growth.c */

    /* GIL; written by inline.c, gather.c, inline_write.c, write.c, blocking.c and words.c. */
    struct counters counters;
} Mapping;

struct lease {
    PyObject_HEAD

    /* Constant once linked. */
    Mapping *mapping;      /* strong */
    struct region *region; /* a reference; NULL when length is 0 */
    int64_t offset;
    Py_ssize_t length;
    bool writable;
    PyObject *place;       /* strong; a string that says where the lease was taken, or None */
    PyObject *anchor;      /* strong; has to live as long as the lease; may be NULL */

    /* GIL; written by lease.c. */
    bool linked; /* it is one of Mapping.leases */
    Lease *next, *previous;
};

bool mapping_check(const Mapping *self); /* open, of this process; or false with an exception */
/* mapping_check, and that a range lies below a limit, or below the size. */
bool mapping_check_range(const Mapping *self, int64_t offset, int64_t length, int64_t limit);
bool mapping_range(const Mapping *self, int64_t offset, int64_t length);
/* Parse (offset, length) of a verb on a range, and check it. */
bool parse_range(Mapping *self, PyObject *args, long long *offset, long long *length);
/* The options for making another region of this mapping. */
struct region_options mapping_options(Mapping *self);

/* Whether inline verbs may touch it: open, of this process, undamaged, not declining. */
static inline bool mapping_is_usable(const Mapping *self)
{
    return !self->closed && !self->declining && self->fork_generation == fork_generation &&
           !is_damaged(&self->damage);
}

/* Whether the mapping shows the file that the descriptor reads: a mapping of the lower layer of an
 * overlayfs stays there when the file is copied up. Asks the inode, and waits for nothing. */
static inline bool mapping_is_current(const Mapping *self)
{
    return !self->layered || file_birth(self->fd) == self->birth;
}

/* Whether mincore(2) can be asked about this file. */
static inline bool mapping_sees_residency(const Mapping *self)
{
    return self->residency_visible && !call_was_refused(CALL_MINCORE);
}

#endif
