/* pool_turns.h: which job of the pool runs next. Knows nothing of Python, nor of threads.
 *
 * A *job* is a call that waits. The jobs of one file stand in a *queue*, and the queues of one hub
 * make up a *share* of the pool. The pool takes jobs from the shares in turn, within a share from
 * its queues in turn, and from a queue in order.
 *
 * Invariants.
 *   1  A device takes at most two thirds of the threads that other devices have left. So devices
 *      that hang, one or several, leave threads for the rest.
 *   2  A share never has more jobs running than its limit.
 */
#ifndef AIOMMAP_POOL_TURNS_H
#define AIOMMAP_POOL_TURNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POOL_WIDTH_MAX 96u
/* A share without a limit of its own. */
#define POOL_NO_LIMIT POOL_WIDTH_MAX

struct pool_link { /* under the pool's lock; written by pool_turns.c */
    struct pool_link *next, *previous;
};

/* A count of running jobs, by hub or by device. The owner gives the number that it is found by. */
struct pool_count { /* under the pool's lock; written by pool_turns.c */
    struct pool_count *next;
    uint64_t number;
    unsigned users;   /* queues that refer to it */
    unsigned running; /* jobs */
};

struct pool_share { /* under the pool's lock; written by pool_turns.c */
    struct pool_link link; /* among the shares that have jobs; first */
    struct pool_link queues;
    struct pool_count count;
    unsigned limit;
};

struct pool_queue { /* under the pool's lock; written by pool_turns.c */
    struct pool_link link; /* among the queues of its share that have jobs; first */
    struct pool_link jobs;
    struct pool_share *share;
    struct pool_count *device;
};

struct pool_job {
    /* Under the pool's lock; written by pool_turns.c. */
    struct pool_link link; /* among the jobs of its queue, or of a list to submit; first */
    bool queued;           /* it waits */
    /* Constant from pool_submit on. */
    struct pool_queue *queue;
    void (*start)(struct pool_job *self); /* has the device begin, and waits for nothing; or NULL */
    void (*run)(struct pool_job *self); /* makes the call; in a thread of the pool */
    bool (*landed)(struct pool_job *self); /* for the owner, once it has landed; the pool does not
                                            * call it */
    /* Of the thread that ran it, and then of the owner; written by landing.c and pool_object.c. */
    struct pool_job *below; /* among those that have landed */
};

struct pool_turns { /* under the pool's lock; written by pool_turns.c and pool.c */
    struct pool_link shares; /* those that have jobs */
    struct pool_count *hubs, *devices;
    unsigned running;
    unsigned width; /* how many jobs may run at a time */
};

/* A list of jobs; of the owner alone. */
void pool_list_make(struct pool_link *list);
void pool_list_append(struct pool_link *list, struct pool_job *job);
bool pool_list_is_empty(const struct pool_link *list);
struct pool_job *pool_list_take(struct pool_link *list); /* the first; the list is not empty */

/* All of these with the mutex. */
void turns_make(struct pool_turns *turns, unsigned width);
void turns_free(struct pool_turns *turns);
/* Whether a job may begin now; and whether jobs wait only because too many run. */
bool turns_has_next(const struct pool_turns *turns);
bool turns_is_crowded(const struct pool_turns *turns);
void turns_add(struct pool_turns *turns, struct pool_job *job);
void turns_remove(struct pool_turns *turns, struct pool_job *job);
/* Take the job whose turn it is, and count it as running; NULL if none may begin. */
struct pool_job *turns_begin(struct pool_turns *turns);
/* Take the next job of the same file, if both can be started and at least `many` jobs run. NULL if
 * not, or if it may not begin. */
struct pool_job *turns_begin_second(struct pool_turns *turns, const struct pool_job *first,
                                    unsigned many);
void turns_end(struct pool_turns *turns, const struct pool_job *job);

/* The queue of a file, as pool_queue_make has it. */
bool turns_open(struct pool_turns *turns, struct pool_queue *queue, uint64_t hub, unsigned limit,
                uint64_t device);
void turns_close(struct pool_turns *turns, struct pool_queue *queue);

#endif
