/* pool_object.h: Pool, the threads of one event loop, which make its calls that wait; PoolQueue,
 * the place of one file in it; and PoolRead, one call or several that somebody waits for.
 * PoolCommit, a call that stores or makes durable, is in pool_commit.h.
 *
 * Only the loop thread uses these, with the GIL. The threads see only the jobs inside a PoolRead,
 * and know nothing of Python (sys/pool.h).
 *
 * Invariants.
 *   1  A PoolRead or PoolCommit that is in flight has a reference to itself, to its queue, to what
 *      keeps the descriptor open and to the memory it uses. It gives them up when its last job has
 *      landed, even if nobody waits any more.
 *   2  `drain` delivers what has landed, to at most TASKS_A_TURN tasks between two turns of the
 *      loop: all tasks that are woken together run in one turn.
 *   3  About READS_MOST jobs of one file are in flight at most. A read that begins then *waits* for
 *      others to land, and has no memory to fill yet. So a thousand tasks that read do not have a
 *      thousand buffers, and a turn of the loop in which they all begin is short.
 *   4  In a forked child nothing here does anything.
 *   5  A PoolRead is no container for the garbage collector: it keeps what wakes a task no longer
 *      than it has jobs in flight, and so does not keep the task.
 */
#ifndef AIOMMAP_PY_POOL_OBJECT_H
#define AIOMMAP_PY_POOL_OBJECT_H

#include "awaited.h"
#include "pin.h"

#include "../sys/per_thread.h"
#include "../sys/pool.h"
#include "../sys/pool_calls.h"

extern PyType_Spec pool_spec, pool_queue_spec, pool_read_spec;

/* How many reads this loop thread has in flight. Even a NOWAIT read makes the device begin with
 * cold pages. Below COLD_READS_FEW that is of use, as a thread wakes up meanwhile. From there on it
 * only takes ten times as long as to ask for residency; inline reads ask first if a read of the
 * file was cold lately. From COLD_READS_MANY on all inline reads ask first: where the queue of the
 * device is full, even to begin a read blocks for milliseconds (docs/decisions.md). */
extern PER_THREAD size_t thread_cold_reads;
#define COLD_READS_FEW 32
#define COLD_READS_MANY 64

typedef struct {
    PyObject_HEAD

    /* Constant. */
    PyObject *make_waiter; /* strong; makes what a task waits for */
    PyObject *call_soon;   /* strong; calls a function in the next turn of the loop */
    PyObject *loop;        /* strong; one of asyncio, whose tasks wait for a PoolRead; or NULL */
    unsigned long forks;   /* how many forks there were when it was made */

    /* GIL; written by pool_object.c. */
    struct pool *pool;         /* NULL once closed */
    PyObject *when_empty;      /* strong; called once nothing is in flight; or NULL */
    struct pool_link gathered; /* jobs to submit in the next turn, or when they are many */
    size_t gathered_count;
    struct pool_job *landed, *last_landed; /* not delivered yet, linked by `below` */
    size_t reads, commits;     /* jobs begun and not delivered */
    bool called;               /* the loop calls `drain` soon */
    bool expected;             /* it does, and threads tell it nothing until then */
    bool deaf;                 /* nobody calls `drain` any more when something lands */
    bool wakes_now;            /* `drain` wakes tasks itself (awaited.2) */
    bool ended;                /* the loop has ended, and wakes no task any more */
} Pool;

/* About this many jobs of a file are in flight at most (pool_object.3). */
#define READS_MOST 512

typedef struct pool_read_object PoolRead;

typedef struct {
    PyObject_HEAD
    Pool *pool;              /* constant; strong */
    struct pool_queue queue; /* under the pool's lock; written by pool_turns.c */

    /* GIL; written by pool_read.c. */
    size_t in_flight;                 /* jobs of this file */
    PoolRead *waiting, *last_waiting; /* strong; linked by `after` */
} PoolQueue;

struct waiting_read { /* one job of a PoolRead */
    struct pool_read call; /* first; by one thread at a time; written by pool_queue.c and pool_read.c */
    PyObject *bytes;       /* GIL; strong; what it fills, if that is ours; written by pool_read.c */
};

struct pool_read_object {
    Awaited awaited; /* GIL; written by awaited.c */

    /* GIL; written by pool_read.c and pool_queue.c. */
    PoolQueue *queue;  /* strong; NULL once all has landed */
    PoolRead *after;   /* among those that wait */
    bool waits;
    bool untried;      /* no inline read has tried it, and so made the device begin */
    PyObject *waiter;  /* strong; what a task waits for, until it is told; or NULL */
    PyObject *tell;    /* strong; called instead of a waiter; or NULL */
    PyObject *results; /* strong; a list for several jobs; or NULL */
    struct pin pin;    /* of the mapping, if it reads one */
    Mapping *mapping;  /* strong; whose pin it is; or NULL */
    Py_buffer view;    /* memory of the caller that it fills; its obj is NULL if there is none */
    size_t count, missing;           /* jobs; those that have not landed */
    struct waiting_read *reads, one; /* several are allocated */
};

/* Submit the gathered jobs; those that cannot be submitted land with EAGAIN. */
void pool_flush(Pool *self);
/* Submit jobs: at once if no read is in flight, else together with others of this turn. False with
 * an exception, and nothing has happened. */
bool pool_run(Pool *self, size_t count, struct waiting_read *reads);
/* Count one read less in flight. */
void pool_note_read(Pool *self);
bool pool_is_usable(const Pool *self);

/* Make a PoolRead of `count` jobs, which the caller fills in; NULL with an exception. It calls
 * `tell` with its result. If `tell` is NULL, it gives the result to the task that awaits it. */
PoolRead *pool_read_make(PoolQueue *queue, size_t count, PyObject *tell);
/* Pin the file that its jobs read. */
void pool_read_pin(PoolRead *self, Mapping *mapping);
/* Have its jobs run, now or later, and keep it alive until they have landed; false with an
 * exception. */
bool pool_read_begin(PoolRead *self);
/* Note that one of its jobs has landed. True if a task was woken. */
bool pool_read_landed(struct pool_job *job);

#endif
