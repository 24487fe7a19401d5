/* log_store.h: system calls on a log's segments, and its published words. Knows nothing of Python.
 *
 * Functions that may wait are called without the GIL. They return 0 or a positive errno number.
 */
#ifndef AIOMMAP_LOG_STORE_H
#define AIOMMAP_LOG_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Words of the control file, each on a cache line of its own; docs/log_format.md. */
#define CONTROL_BYTES 4096
enum control_word {
    CONTROL_TAIL = 256,
    CONTROL_DURABLE = 320,
    CONTROL_DURABLE_SEQUENCE = 384,
    CONTROL_LAST_SEQUENCE = 448,
    CONTROL_FIRST = 512,
    CONTROL_FUTEX = 576,
    CONTROL_CLEAN = 640,
};

struct published { /* the caller's own */
    uint64_t last_sequence, tail;
    uint64_t durable; /* the tail, if all before it is durable; else 0 */
};

/* Publish how far the log goes, and wake those who wait; false if the page cannot be reached. */
bool control_publish(char *page, const struct published *published, int64_t tick);
bool control_store(char *page, enum control_word word, uint64_t value, int64_t tick);
/* Change the futex word and wake those who wait for it. */
bool control_wake(char *page, int64_t tick);

/* Make what is in a segment durable, and check that the file is still whole and has a name: ENODATA
 * if it is shorter than `whole`, ESTALE if it has no name left. Give the length that it was made with:
 * if somebody cuts it off, the next record makes it longer again, but not as long as that. */
int segment_sync(int fd, int64_t whole);

#endif
