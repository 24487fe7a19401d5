/* pool.h: threads that make calls which wait for a disk. Knows nothing of Python.
 *
 * Threads take jobs in the order of pool_turns.h. After its call a job *lands* (landing.h), and a
 * descriptor becomes readable, unless the owner will look there anyway. One thread, the *owner*,
 * makes queues, submits, withdraws and takes what has landed.
 *
 * How many threads. POOL_WIDTH jobs run at a time, and one more for each that has run for longer
 * than POOL_BLOCKED_NS: so a slow device gets depth, and a fast one gets no more than it needs,
 * with some reads in hand for when it is done with others. One more thread watches for such jobs
 * while others wait. A thread is started when it is needed, and an idle one ends after
 * POOL_IDLE_NS.
 *
 * Two at a time. While POOL_PAIRS jobs run and none is slow, a thread takes two jobs of one file,
 * has the device begin both, and then makes the two calls one after the other. For the second call
 * it seldom has to sleep. Only jobs with a `start` make a pair.
 *
 * Invariants.
 *   1  A job belongs to the pool from pool_submit until it was withdrawn, or pool_landed returned
 *      it; so does the memory that it fills. A thread touches neither job nor queue once it has
 *      landed the job.
 *   2  The mutex is held for moments: never during a job, nor while a thread is signalled.
 *   3  Nobody waits for a thread that runs a job: the pool is dropped when all jobs have landed.
 *   4  A forked child has no thread of the pool and makes no call of this file.
 */
#ifndef AIOMMAP_POOL_H
#define AIOMMAP_POOL_H

#include "pool_turns.h"

#define POOL_WIDTH 40u
#define POOL_PAIRS 16u
#define POOL_BLOCKED_NS 1000000
#define POOL_WATCH_NS 1000000
#define POOL_IDLE_NS 10000000000

struct pool;

/* Make a pool without a thread; 0 or an errno number. */
int pool_make(struct pool **made);
/* Give a pool up, when all its jobs have landed, and have its threads end. */
void pool_drop(struct pool *pool);
/* The same in a forked child. */
void pool_forget(struct pool *pool);
/* Readable when jobs have landed, unless the owner is expected. */
int pool_descriptor(const struct pool *pool);

/* Make the queue of a file, which belongs to a hub and lies on a device; false without memory. The
 * limit holds for the hub from now on. */
bool pool_queue_make(struct pool *pool, struct pool_queue *queue, uint64_t hub, unsigned limit,
                     uint64_t device);
void pool_queue_drop(struct pool *pool, struct pool_queue *queue);

/* Submit the jobs of a list, each with queue and run set, and empty the list. If there is no thread
 * and none can be started, returns an errno number, and the list stays as it is. */
int pool_submit(struct pool *pool, struct pool_link *list);
/* Submit one job. False if it would have to wait for a thread and none can be started: then it
 * stays the caller's. */
bool pool_submit_one(struct pool *pool, struct pool_job *job);
/* Take a job back if no thread has begun it. */
bool pool_withdraw(struct pool *pool, struct pool_job *job);
/* The owner promises to come without being told: until it takes what has landed, jobs that land
 * leave the descriptor alone. */
void pool_expect(struct pool *pool);
/* Take all jobs that have landed, in the order in which they did, linked by `below`; or NULL. With
 * `told`, the owner has come because of the descriptor, which is not readable afterwards. */
struct pool_job *pool_landed(struct pool *pool, bool told);
/* How many threads there are, and how many jobs may run at a time; for tests. */
unsigned pool_threads(struct pool *pool);
unsigned pool_width(struct pool *pool);

#endif
