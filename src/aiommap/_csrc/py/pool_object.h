/* pool_object.h: Pool, the threads that make calls of one event loop which wait; PoolQueue, the place in it of
 * one file; and PoolRead, one call or several that somebody waits for. PoolCommit, which stores and
 * makes durable, is in pool_commit.h.
 *
 * All of it is for the loop thread, with the GIL. Only the jobs inside of a PoolRead are seen by the
 * threads, which know nothing of Python (sys/pool.h).
 *
 * Invariants.
 *   1  A PoolRead or PoolCommit that is in flight has a reference to itself, to its queue, to what
 *      keeps the descriptor open and to the memory it uses. It gives them up when its last job has
 *      landed, whoever has stopped waiting meanwhile.
 *   2  What has landed is delivered by `drain`, for at most TASKS_A_TURN tasks between two turns of the
 *      loop: all that are woken together run in one turn.
 *   3  Of one file about READS_MOST jobs are in flight, and what is begun then *waits* for others to
 *      land, with no memory to fill yet: so a thousand tasks that read do not have a thousand buffers,
 *      and a turn of the loop in which they all begin is short.
 *   4  In a forked child nothing here does anything.
 */
#ifndef AIOMMAP_PY_POOL_OBJECT_H
#define AIOMMAP_PY_POOL_OBJECT_H

#include "api.h"
#include "pin.h"

#include "../sys/per_thread.h"
#include "../sys/pool.h"
#include "../sys/pool_calls.h"

extern PyType_Spec pool_spec, pool_queue_spec, pool_read_spec;

/* How many reads this loop thread has in flight. Even a read that is not to wait has the device begin with
 * what is cold. Beside COLD_READS_FEW that is of use, as a thread wakes up meanwhile. Beside more it only
 * takes ten times what it takes to ask for residency, which inline reads do first if one of the file
 * was cold lately. Beside COLD_READS_MANY all do: where the queue of the device is full, to begin blocks
 * for milliseconds (docs/decisions.md). */
extern PER_THREAD size_t thread_cold_reads;
#define COLD_READS_FEW 32
#define COLD_READS_MANY 64

typedef struct {
    PyObject_HEAD

    /* Constant. */
    PyObject *make_waiter; /* strong; makes what a task waits for */
    PyObject *call_soon;   /* strong; calls a function in the next turn of the loop */
    unsigned long forks;   /* how many there had been when it was made */

    /* GIL; written by pool_object.c. */
    struct pool *pool;         /* NULL once closed */
    PyObject *when_empty;      /* strong; called once nothing is in flight; or NULL */
    struct pool_link gathered; /* jobs to submit in the next turn, or when they are many */
    size_t gathered_count;
    struct pool_job *landed, *last_landed; /* not delivered yet, by `below` */
    size_t reads, commits;     /* jobs begun and not delivered */
    bool called;               /* the loop calls `drain` soon */
    bool deaf;                 /* nobody calls `drain` any more when something lands */
} Pool;

/* About so many jobs of a file are in flight at a time (pool_object.3). */
#define READS_MOST 256

typedef struct pool_read_object PoolRead;

typedef struct {
    PyObject_HEAD
    Pool *pool;              /* constant; strong */
    struct pool_queue queue; /* under the pool's lock; written by pool_turns.c */

    /* GIL; written by pool_read.c. */
    size_t in_flight;                 /* jobs of this file */
    PoolRead *waiting, *last_waiting; /* strong; by `after` */
} PoolQueue;

struct waiting_read { /* one job of a PoolRead */
    struct pool_read call; /* first; by one thread at a time; written by pool_queue.c and pool_read.c */
    PyObject *bytes;       /* GIL; strong; what it fills, if that is ours; written by pool_read.c */
};

struct pool_read_object {
    PyObject_HEAD

    /* GIL; written by pool_read.c and pool_queue.c. */
    PoolQueue *queue;  /* strong; NULL once all has landed */
    PoolRead *after;   /* among those that wait */
    bool waits;
    bool untried;      /* by an inline read, of which the device would have begun */
    PyObject *waiter;  /* strong; what is waited for, until it was told */
    PyObject *tell;    /* strong; called instead of a waiter; or NULL */
    PyObject *results; /* strong; a list for several jobs; or NULL */
    struct pin pin;    /* of the file that is mapped, if it is one */
    Mapping *mapping;  /* strong; whose pin it is; or NULL */
    Py_buffer view;    /* memory of the caller that it fills; or without an object */
    size_t count, missing;           /* jobs; those that have not landed */
    struct waiting_read *reads, one; /* several are allocated */
};

/* Have the jobs gathered run; what cannot be submitted lands with EAGAIN. */
void pool_flush(Pool *self);
/* Have jobs run: at once if nothing is in flight, else together with others of this turn. False with an
 * exception, and nothing has happened. */
bool pool_run(Pool *self, size_t count, struct waiting_read *reads);
/* Count one read less in flight. */
void pool_note_read(Pool *self);
bool pool_is_usable(const Pool *self);

/* Make a PoolRead of so many jobs, all to be filled in; NULL with an exception. With `tell` its result
 * is passed to that, else `waiter` is set to it. */
PoolRead *pool_read_make(PoolQueue *queue, size_t count, PyObject *tell);
/* Pin the file that its jobs read. */
void pool_read_pin(PoolRead *self, Mapping *mapping);
/* Have its jobs run, now or later, and keep it until they have landed; false with an exception. */
bool pool_read_begin(PoolRead *self);
/* Note that one of its jobs has landed. True if a task was woken. */
bool pool_read_landed(struct pool_job *job);

#endif
