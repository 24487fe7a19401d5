/* growth.h: files that a store beyond their end makes longer. Knows nothing of Python.
 *
 * Theory of operation. A growable region maps the whole reserved capacity over a short file. A store
 * beyond the end faults; the signal handler makes the file longer and lets the store happen again. The
 * handler cannot report anything to the code that stores. So it records where the file now ends, and
 * the next question for the size of the mapping finds that record.
 *
 * Invariants.
 *   1  While a growable region exists the file ends at a page boundary. A store into the rest of a
 *      partly used last page would not fault, and would never reach the file.
 *   2  The thread that has the lock `busy` makes a few system calls and nothing else. It never waits
 *      for the GIL, because a thread that stores may hold the GIL while it waits for `busy`. The
 *      handler does not even wait for `busy`: it returns, the store faults again, and it tries again.
 *   3  Growth does not heal a fault below `end`: that part of the file was there, and is lost.
 */
#ifndef AIOMMAP_GROWTH_H
#define AIOMMAP_GROWTH_H

#include <stdbool.h>
#include <stdint.h>

#include "append.h"

/* How far growth goes ahead of a store: by as much as the file has already, between the first and
 * the second of these. Growth reserves blocks that far, and makes a sparse file that much longer.
 * It makes any other file longer by a window of zeros, which it writes. The pages of the window are
 * then in memory and dirty, so that one fault serves many of them; in blocks that are only
 * reserved, each page would fault (docs/decisions.md). */
#define GROWTH_MIN_BYTES (INT64_C(64) << 10)
#define GROWTH_MAX_BYTES (INT64_C(64) << 20)
#define GROWTH_WINDOW_BYTES (INT64_C(512) << 10)
/* The size of the largest folio: as much as a store to one page may take from the disk and make
 * dirty. */
#define FOLIO_BYTES (INT64_C(2) << 20)

struct growth {
    /* Constant. */
    bool sparse; /* do not reserve blocks */

    /* Atomic; written by growth.c. */
    int busy; /* the lock: the process whose thread has it, or 0 */

    /* Atomic; written by growth.c, under the lock. */
    int64_t end;   /* where the file ends as far as we made or saw it */
    int64_t grown; /* where the handler made it end; 0 if it has not since the length was set */

    /* Under the lock; written by growth.c. */
    int fd;              /* -1 once growth is over */
    int64_t reserved;    /* up to where blocks are reserved */
    uint64_t generation; /* another number after each change of `end` */
};

/* What became of a fault. */
enum growth_outcome {
    GROWTH_AGAIN,  /* the file has grown, or another thread has the lock: let it happen again */
    GROWTH_THERE,  /* the page is there: let it happen again, but only once in a generation, for the
                    * page may be unreadable */
    GROWTH_BEYOND, /* growth is over, and nothing of the file is lost */
    GROWTH_LOST,   /* part of the file was cut off, or it cannot grow: the error says why */
};

/* For the handler: deal with a fault at an offset below the limit, which is the end of the region.
 * *generation is the one that GROWTH_THERE means. */
enum growth_outcome growth_reach(struct growth *growth, int64_t offset, int64_t limit, int *error,
                                 uint64_t *generation);

/* Allocate blocks for a range of the file after a page of it faulted. A store takes blocks for a
 * whole folio, and when the disk has too few, the fault is the only sign. 0 if there are blocks
 * now; then *again is the error that a further fault of the page means. Otherwise the reason why
 * there are none: the errno number of a full disk, EAGAIN while another thread has the lock, EFAULT
 * for anything else. The handler may call this, also for files that never grow. */
int growth_fill(struct growth *growth, int64_t offset, int64_t length, int *again);

/* For the handler: whether a page of a region that does not grow lies behind the end of the file.
 * GROWTH_BEYOND if it does: then the lock is held until growth_return, so that nobody changes the
 * length. Else GROWTH_LOST, or GROWTH_AGAIN while another thread has the lock. */
enum growth_outcome growth_leave(struct growth *growth, int64_t offset);
void growth_return(struct growth *growth);

/* Make the file this long, through the given descriptor, and forget what the handler did. With
 * `whole_pages` zeros follow up to a page boundary (growth.1). 0 or an errno number. */
int growth_truncate(struct growth *growth, int fd, int64_t length, bool whole_pages);
/* Make the file at least this long; the caller reserves blocks. 0 or an errno number. */
int growth_extend(struct growth *growth, int fd, int64_t end);
/* Write pieces behind the end: at `size`, or behind what the handler has added since. With
 * `whole_pages` zeros follow up to a page boundary (growth.1). The error is EAGAIN, with nothing
 * done, if others have changed the length. Any other error ends the append with the last whole
 * piece, and the file is cut back to that. The call uses the pieces up, and their array needs room
 * for one more. */
void growth_append(struct growth *growth, int fd, struct iovec *pieces, int count, int64_t size,
                   bool whole_pages, struct appended *out);
/* Take over the length that others cut the file to. */
void growth_follow(struct growth *growth, int64_t length);
/* Wait until no thread has the lock. */
void growth_wait(struct growth *growth);
/* From now on a fault beyond the end finds zeros, and the descriptor is not used any more. */
void growth_stop(struct growth *growth);

#endif
