/* growth.h: files that become longer where a store beyond their end hits. Knows nothing of Python.
 *
 * Theory of operation. A growable region maps the whole reserved capacity over a short file. A store
 * beyond the end faults, the signal handler makes the file longer and lets the store happen again.
 * Nothing can be told to whoever stores; so the handler leaves behind where the file now ends, and
 * whoever asks for the size of the mapping finds it there.
 *
 * Invariants.
 *   1  While a growable region exists the file ends at a page boundary, for a store into the rest of
 *       the last page faults nowhere and would never reach the file.
 *   2  Who holds `busy` makes a few system calls and nothing else: it never waits for the GIL, which
 *       a thread that stores may hold while it waits for `busy`. The handler does not even wait: it
 *       returns, the store faults again, and it looks again.
 *   3  A fault below `end` is not for growth to heal: that part of the file was there, and is lost.
 */
#ifndef AIOMMAP_GROWTH_H
#define AIOMMAP_GROWTH_H

#include <stdbool.h>
#include <stdint.h>

/* How far ahead of a store: as much again as there is, within these. So far blocks are reserved, and a
 * sparse file is made longer. A file that is not is made longer by zeros that are written, a window
 * of them: pages that are in memory and dirty already are stored to by one fault for many, where
 * each page of a reserved block takes its own (docs/decisions.md). */
#define GROWTH_MIN_BYTES (INT64_C(64) << 10)
#define GROWTH_MAX_BYTES (INT64_C(64) << 20)
#define GROWTH_WINDOW_BYTES (INT64_C(512) << 10)
/* The most that one page in the page cache takes with it. */
#define FOLIO_BYTES (INT64_C(2) << 20)

struct growth {
    /* Constant. */
    bool sparse; /* do not reserve blocks */

    /* Atomic; written by growth.c. */
    int busy; /* the lock: the process whose thread has it, or 0 */

    /* Atomic; written by growth.c, under the lock. */
    int64_t end;   /* where the file ends as far as we made or saw it */
    int64_t grown; /* where the handler made it end; 0 if it did nothing since */

    /* Under the lock; written by growth.c. */
    int fd;              /* -1 once growth is over */
    int64_t reserved;    /* up to where blocks are reserved */
    uint64_t generation; /* another number after each change of `end` */
};

/* What became of a fault. */
enum growth_outcome {
    GROWTH_AGAIN,  /* nothing yet, or somebody else was there first: let it happen again */
    GROWTH_THERE,  /* the page is there, so let it happen again; once in a generation, for it may be
                    * unreadable */
    GROWTH_BEYOND, /* growth is over, and nothing of the file is lost */
    GROWTH_LOST,   /* see the error */
};

/* For the handler: deal with a fault at an offset, which lies below the limit of the mapping. The
 * generation is set with GROWTH_THERE. */
enum growth_outcome growth_reach(struct growth *growth, int64_t offset, int64_t limit, int *error,
                                 uint64_t *generation);

/* Have blocks behind a range of the file where a page could not be had: a store takes blocks for all of
 * a folio, and where the disk lacks these, nothing says so but the fault. 0 if there are some now, and
 * *again is what it means if the page still cannot be had; or else why there are none: the errno number
 * of a full disk, EFAULT for any other reason, EAGAIN while another thread has the lock. Also for the
 * handler, and for files that never grow. */
int growth_fill(struct growth *growth, int64_t offset, int64_t length, int *again);

/* For the handler: GROWTH_BEYOND for a page behind the end of the file, in a region that does not grow;
 * nobody changes the length then until growth_return. */
enum growth_outcome growth_leave(struct growth *growth, int64_t offset);
void growth_return(struct growth *growth);

/* Make the file this long, by another descriptor, and forget what the handler did. If it is to end
 * at a page boundary (growth.1) it does so with zeros behind the given length. 0 or an errno number. */
int growth_truncate(struct growth *growth, int fd, int64_t length, bool whole_pages);
/* Make the file at least this long; blocks are the caller's to reserve. 0 or an errno number. */
int growth_extend(struct growth *growth, int fd, int64_t end);
/* Take over the length that others cut the file to. */
void growth_follow(struct growth *growth, int64_t length);
/* Wait until nobody is at work on the length. */
void growth_wait(struct growth *growth);
/* From now on a fault beyond the end finds zeros, and the descriptor is not used any more. */
void growth_stop(struct growth *growth);

#endif
