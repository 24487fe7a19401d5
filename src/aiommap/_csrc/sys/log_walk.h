/* log_walk.h: following the frames of a segment, and searching for frames where the walk ends.
 * Knows nothing of Python.
 *
 * Functions that may wait are called without the GIL. They return 0 or a positive errno number.
 */
#ifndef AIOMMAP_LOG_WALK_H
#define AIOMMAP_LOG_WALK_H

#include <stdbool.h>
#include <stdint.h>

#include "log_frame.h"

/* A walk along the frames of a segment. */
struct log_scan { /* the caller's own */
    int fd;
    struct frame_place place; /* of the next frame */
    int64_t offset;           /* of the next frame, in the file */
    int64_t end;              /* how far the walk may look */
    uint64_t until;           /* stop before the record of this number */
    uint64_t proof;           /* frames say that records up to this one are durable */
    int64_t proven_at;        /* where that record ends, or an earlier one if that is not known */
    int64_t record_end;       /* where the last record ends */
    uint64_t first;           /* what the last DISCARD said; 0 if there was none */
    uint64_t records;
    int64_t end_at; /* where the END frame lies, or -1 */
    uint32_t last_crc;
};
/* Walk to the END frame, or to the first place where nothing fits. */
int log_scan(struct log_scan *scan);

/* A search for frames behind the place where nothing fits. */
struct log_search { /* the caller's own */
    int fd;
    uint64_t salt, position; /* of the segment, and of the byte at `offset` */
    int64_t offset, end;
    uint64_t sequence; /* the search ignores smaller ones */
    uint64_t base;     /* of the first record of the segment */
    uint64_t proof;    /* the highest that was found */
    uint64_t records;
    int64_t last_end; /* where the last one ends, or -1 */
    uint64_t summed;  /* how many bytes were summed */
    uint32_t life;    /* the highest */
    bool first_only;  /* stop at the first record: then `offset` and `sequence` are its own */
};
int log_search(struct log_search *search);

#endif
