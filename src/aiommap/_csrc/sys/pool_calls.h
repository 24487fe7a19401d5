/* pool_calls.h: jobs of the pool on the descriptor of a file. Knows nothing of Python. */
#ifndef AIOMMAP_POOL_CALLS_H
#define AIOMMAP_POOL_CALLS_H

#include <sys/types.h>

#include "pool_turns.h"

struct pool_read {
    struct pool_job job; /* first; by one thread at a time; written by landing.c */
    /* Constant while a thread may run it. */
    void *owner; /* the object that it belongs to */
    int fd;      /* stays open until the job has landed */
    off_t offset;
    size_t length;
    char *to; /* memory of the pool until then (pool.1) */
    /* By one thread at a time; written by pool_calls.c, pool_object.c and pool_read.c. */
    ssize_t got; /* bytes, or a negative errno number */
};

/* What `job.run` may be; file_io.h has what they do. */
void pool_read_own(struct pool_job *job);   /* file_read_own */
void pool_read_plain(struct pool_job *job); /* file_read */
void pool_read_ahead(struct pool_job *job); /* file_read_ahead, in pieces; got is 0 */
void pool_read_start(struct pool_job *job); /* for job.start: file_read_nowait; `run` reads again */
void pool_close(struct pool_job *job);      /* close(2), and nobody learns of its outcome */

#endif
