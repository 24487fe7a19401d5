/* pwrite_watch.h: whether pwrite(2) waits, and for whom.
 *
 * The loop thread leaves its stores to a worker while they would wait (py/inline_way.h). A worker
 * may wait. But a process that writes megabytes at a time holds the inode's lock for most of a
 * millisecond each time, and the kernel spins for the lock while its owner runs. A worker that
 * spins all the time leaves the loop thread no processor. So while that goes on, a worker stores
 * through the mapping, which does not take that lock, where the page's folio is dirty already
 * (docs/decisions.md).
 */
#ifndef AIOMMAP_PY_PWRITE_WATCH_H
#define AIOMMAP_PY_PWRITE_WATCH_H

#include "mapping.h"

/* Whether pwrite(2) waits on the loop thread. */
struct pwrite_watch { /* the caller's own */
    int suspected;    /* one was slow: this many more are watched */
    bool watched;     /* one took long: see whether another one sleeps */
    bool was_long, waited;
    bool spun; /* one that was watched spun for a lock */
    /* These are of one call. */
    bool looks;
    long waits;
    int64_t begun, ran; /* the monotonic clock, and the thread's */
};
struct pwrite_watch pwrite_watch(const Mapping *self, int64_t now);
/* Before a call with its questions, and after it, without the GIL; `now` is monotonic. */
void pwrite_watch_begin(struct pwrite_watch *watch, int64_t now);
void pwrite_watch_end(struct pwrite_watch *watch, size_t bytes);
void pwrite_watch_note(Mapping *self, const struct pwrite_watch *watch);

/* Whether the pwrite(2) of a worker spins for the inode's lock. Only stores of up to
 * GIL_COPY_LIMIT_BYTES are watched, and only while those of the loop thread go to workers. A call
 * that seems to spin may only have lost its processor to the host, so one alone tells nothing. */
struct lock_watch { /* the caller's own */
    bool looks;     /* stores of the loop thread go to workers */
    bool suspected; /* one spun lately */
    bool held;      /* two did: another process holds the lock for long, time and again */
    bool spun;      /* one spun now */
};
struct lock_watch lock_watch(const Mapping *self, int64_t now);
void lock_watch_spin(struct lock_watch *watch);
void lock_watch_note(Mapping *self, const struct lock_watch *watch);

#endif
