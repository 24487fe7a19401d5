#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "clock.h"
#include "landing.h"

/* Enough for a system call; pthread_create would reserve megabytes. */
#define STACK_BYTES ((size_t)256 << 10)
/* How often to try the mutex before sleeping: to sleep takes far longer than anybody holds it. */
#define LOCK_TRIES 100
/* The threads that run jobs, and the one that watches. */
#define THREADS_MAX (POOL_WIDTH_MAX + 1)

struct pool_thread { /* with the mutex */
    struct pool *pool;         /* constant */
    struct pool_thread *below; /* in the stack of idle threads */
    pthread_cond_t wake;
    int64_t began; /* the job that it runs; 0 without one */
    struct pool_job *second; /* of a pair: started with the first, run after it; or NULL */
    bool exists;
    bool woken;
};

struct pool {
    pthread_mutex_t mutex;
    pthread_cond_t left; /* the last thread has ended */

    /* With the mutex. */
    struct pool_turns turns;
    struct pool_thread threads[THREADS_MAX];
    struct pool_thread *idle; /* the one that was busy last has the warmest caches: a stack */
    struct pool_thread *watcher;
    unsigned existing;
    unsigned waking; /* about to look for a job: woken, started, or done with another one */
    unsigned ended;  /* jobs, since the width was last adapted */
    bool starved;    /* the last thread that was to start did not */
    bool dropped;

    struct landing landing; /* needs no mutex */
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void lock(struct pool *pool)
{
    for (int tries = 0; tries < LOCK_TRIES; tries++) {
        if (!pthread_mutex_trylock(&pool->mutex))
            return;
        relax();
    }
    pthread_mutex_lock(&pool->mutex);
}

/* With the mutex, from here on to the threads. */

/* Let POOL_WIDTH jobs run, and one more for each that is blocked. The width falls by an eighth at
 * most: the jobs of a slow device may all begin at one moment, and then none looks blocked. */
static void adapt(struct pool *pool, int64_t now)
{
    unsigned width = POOL_WIDTH, least = pool->turns.width - pool->turns.width / 8;
    for (size_t i = 0; i < THREADS_MAX; i++)
        width += pool->threads[i].began && pool->threads[i].began < now - POOL_BLOCKED_NS;
    width = width < POOL_WIDTH_MAX ? width : POOL_WIDTH_MAX;
    pool->turns.width = width > least ? width : least;
    pool->ended = 0;
}

/* End the job that the thread has done, if there is one, and take its next one, or the next two. */
static struct pool_job *take_next(struct pool *pool, struct pool_thread *self,
                                  const struct pool_job *done)
{
    int64_t now = monotonic_clock();
    self->began = 0;
    if (done) {
        turns_end(&pool->turns, done);
        if (++pool->ended == POOL_WIDTH_MAX)
            adapt(pool, now);
    }
    struct pool_job *second = self->second, *job = second ? second : turns_begin(&pool->turns);
    self->second = NULL;
    if (!job)
        return NULL;
    self->began = now;
    if (!second && pool->turns.width == POOL_WIDTH)
        self->second = turns_begin_second(&pool->turns, job, POOL_PAIRS);
    return job;
}

/* Threads. */

static void *work(void *argument);

static int start_thread(struct pool_thread *thread)
{
    pthread_t made;
    pthread_attr_t attributes;
    sigset_t blocked, before;
    sigfillset(&blocked); /* threads of Python get all signals but those of faults, which stay with
                           * the thread that faults */
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGILL);
    sigdelset(&blocked, SIGFPE);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    int error = pthread_create(&made, &attributes, work, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

static struct pool_thread *spare_thread(struct pool *pool)
{
    for (size_t i = 0; i < THREADS_MAX; i++)
        if (!pool->threads[i].exists)
            return &pool->threads[i];
    return NULL;
}

/* The thread that is to help with the jobs that are left. */
struct helper { /* the caller's own */
    struct pool_thread *thread; /* or NULL */
    bool starts;
};

static void note_start(struct pool *pool, struct pool_thread *thread)
{
    thread->exists = true;
    pool->existing++;
    pool->waking++;
}

static struct helper starting(struct pool *pool)
{
    struct pool_thread *thread = spare_thread(pool);
    if (!thread)
        return (struct helper){0};
    note_start(pool, thread);
    return (struct helper){thread, true};
}

static void undo_start(struct pool *pool, struct pool_thread *thread)
{
    thread->exists = false;
    pool->existing--;
    pool->waking--;
    pool->starved = true;
}

/* Choose an idle thread, or one to start. That thread then chooses the next one, so that whoever
 * submits many jobs does not make as many calls. */
static struct helper choose_helper(struct pool *pool)
{
    struct pool_thread *thread = pool->idle;
    if (pool->waking || (!turns_has_next(&pool->turns) && (pool->watcher || !turns_is_crowded(&pool->turns))))
        return (struct helper){0};
    if (!thread)
        return starting(pool);
    pool->idle = thread->below;
    thread->woken = true;
    pool->waking++;
    return (struct helper){thread, false};
}

/* Without the mutex. If no thread can be started, the existing ones have to do. */
static void call_helper(struct pool *pool, struct helper helper)
{
    if (!helper.thread)
        return;
    if (!helper.starts) {
        pthread_cond_signal(&helper.thread->wake);
    } else if (start_thread(helper.thread)) {
        lock(pool);
        undo_start(pool, helper.thread);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static void wait_for(struct pool_thread *self, int64_t nanoseconds)
{
    int64_t until = monotonic_clock() + nanoseconds;
    struct timespec moment = {until / 1000000000, until % 1000000000};
#ifdef __APPLE__
    moment = (struct timespec){nanoseconds / 1000000000, nanoseconds % 1000000000};
    pthread_cond_timedwait_relative_np(&self->wake, &self->pool->mutex, &moment);
#else
    pthread_cond_timedwait(&self->wake, &self->pool->mutex, &moment);
#endif
}

static void leave_idle(struct pool *pool, const struct pool_thread *self)
{
    struct pool_thread **at = &pool->idle;
    while (*at != self)
        at = &(*at)->below;
    *at = self->below;
}

/* Wait to be woken; false if the thread is to end. */
static bool be_idle(struct pool *pool, struct pool_thread *self)
{
    int64_t since = monotonic_clock();
    self->below = pool->idle;
    pool->idle = self;
    while (!self->woken && !pool->dropped && monotonic_clock() - since < POOL_IDLE_NS)
        wait_for(self, POOL_IDLE_NS);
    if (self->woken) {
        self->woken = false;
        pool->waking--;
        return true;
    }
    leave_idle(pool, self);
    return false;
}

/* Wait until there is a job to take; false if the thread is to end. */
static bool rest(struct pool *pool, struct pool_thread *self)
{
    while (!pool->dropped && !turns_has_next(&pool->turns)) {
        if (turns_is_crowded(&pool->turns) && !pool->watcher) {
            pool->watcher = self;
            wait_for(self, POOL_WATCH_NS);
            pool->watcher = NULL;
            if (turns_is_crowded(&pool->turns))
                adapt(pool, monotonic_clock());
        } else if (!be_idle(pool, self)) {
            return false;
        }
    }
    return !pool->dropped;
}

/* With the mutex, which this lets go. */
static void leave(struct pool *pool, struct pool_thread *self)
{
    self->exists = false;
    if (--pool->existing == 0)
        pthread_cond_signal(&pool->left);
    pthread_mutex_unlock(&pool->mutex);
}

/* Without the mutex. */
static void run(struct pool_job *job, struct pool_job *second)
{
    if (second) {
        job->start(job);
        second->start(second);
    }
    job->run(job);
}

static void *work(void *argument)
{
    struct pool_thread *self = argument;
    struct pool *pool = self->pool;
    struct pool_job *done = NULL;
    lock(pool);
    pool->waking--;
    pool->starved = false;
    for (;;) {
        struct pool_job *job = take_next(pool, self, done), *second = self->second;
        struct helper helper = {0};
        if (job)
            helper = choose_helper(pool);
        bool looks_again = !job && done; /* this thread only has to land its job, so it wakes nobody
                                          * else */
        if (!job && !done && !rest(pool, self))
            break;
        pool->waking += looks_again;
        pthread_mutex_unlock(&pool->mutex);
        if (done)
            landing_put(&pool->landing, done);
        call_helper(pool, helper);
        if (job)
            run(job, second);
        done = job;
        lock(pool);
        pool->waking -= looks_again;
    }
    leave(pool, self);
    return NULL;
}

/* The owner. */

int pool_make(struct pool **made)
{
    struct pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return ENOMEM;
    int error = landing_open(&pool->landing);
    if (error) {
        free(pool);
        return error;
    }
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
#ifndef __APPLE__
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
    for (size_t i = 0; i < THREADS_MAX; i++) {
        pool->threads[i].pool = pool;
        pthread_cond_init(&pool->threads[i].wake, &attributes);
    }
    pthread_cond_init(&pool->left, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&pool->mutex, NULL);
    turns_make(&pool->turns, POOL_WIDTH);
    *made = pool;
    return 0;
}

/* No job is left, so that every thread is idle or about to be, and none can hang. */
void pool_drop(struct pool *pool)
{
    lock(pool);
    pool->dropped = true;
    for (size_t i = 0; i < THREADS_MAX; i++)
        pthread_cond_signal(&pool->threads[i].wake);
    while (pool->existing)
        pthread_cond_wait(&pool->left, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    landing_close(&pool->landing);
    turns_free(&pool->turns);
    for (size_t i = 0; i < THREADS_MAX; i++)
        pthread_cond_destroy(&pool->threads[i].wake);
    pthread_cond_destroy(&pool->left);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

void pool_forget(struct pool *pool) { landing_close(&pool->landing); }

int pool_descriptor(const struct pool *pool) { return pool->landing.readable; }

void pool_expect(struct pool *pool) { landing_expect(&pool->landing); }

struct pool_job *pool_landed(struct pool *pool, bool told) { return landing_take(&pool->landing, told); }

bool pool_queue_make(struct pool *pool, struct pool_queue *queue, uint64_t hub, unsigned limit,
                     uint64_t device)
{
    lock(pool);
    bool made = turns_open(&pool->turns, queue, hub, limit, device);
    struct helper helper = choose_helper(pool); /* if the limit was lower, jobs may begin now */
    pthread_mutex_unlock(&pool->mutex);
    call_helper(pool, helper);
    return made;
}

void pool_queue_drop(struct pool *pool, struct pool_queue *queue)
{
    lock(pool);
    turns_close(&pool->turns, queue);
    pthread_mutex_unlock(&pool->mutex);
}

/* With the mutex, which no other thread wants. */
static int start_first(struct pool *pool)
{
    struct pool_thread *thread = pool->threads; /* as none exists */
    note_start(pool, thread);
    int error = start_thread(thread);
    if (error)
        undo_start(pool, thread);
    return error;
}

int pool_submit(struct pool *pool, struct pool_link *list)
{
    struct helper helper = {0};
    lock(pool);
    int error = pool->existing ? 0 : start_first(pool);
    if (!error) {
        while (!pool_list_is_empty(list))
            turns_add(&pool->turns, pool_list_take(list));
        helper = choose_helper(pool);
    }
    pthread_mutex_unlock(&pool->mutex);
    call_helper(pool, helper);
    return error;
}

/* With the mutex. */
static bool withdraw(struct pool *pool, struct pool_job *job)
{
    bool queued = job->queued;
    if (queued)
        turns_remove(&pool->turns, job);
    return queued;
}

bool pool_submit_one(struct pool *pool, struct pool_job *job)
{
    struct pool_link list;
    pool_list_make(&list);
    pool_list_append(&list, job);
    if (pool_submit(pool, &list))
        return false;
    lock(pool);
    bool stuck = pool->starved && withdraw(pool, job);
    pthread_mutex_unlock(&pool->mutex);
    return !stuck;
}

bool pool_withdraw(struct pool *pool, struct pool_job *job)
{
    lock(pool);
    bool withdrawn = withdraw(pool, job);
    pthread_mutex_unlock(&pool->mutex);
    return withdrawn;
}

unsigned pool_threads(struct pool *pool)
{
    lock(pool);
    unsigned existing = pool->existing;
    pthread_mutex_unlock(&pool->mutex);
    return existing;
}

unsigned pool_width(struct pool *pool)
{
    lock(pool);
    unsigned width = pool->turns.width;
    pthread_mutex_unlock(&pool->mutex);
    return width;
}
