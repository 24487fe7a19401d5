/* pool_harness.c: cases of the pool of native threads, see harness.h. */
#include "harness.h"

#include "clock.h"
#include "pool.h"
#include "pool_calls.h"

#include <poll.h>

#define JOBS 2000

/* A job that says when it has begun, and runs until it is let go. */
struct held_job {
    struct pool_job job; /* first */
    int started, begun, may_end, ended;
    int at_once; /* how many of its kind were at work when it began */
};

static struct pool *pool;
static struct pool_queue queues[8];
static struct held_job jobs[JOBS];
static int at_work, most_at_work;

static void nap(void) { nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL); }

static void run_held(struct pool_job *job)
{
    struct held_job *self = (struct held_job *)job;
    int now = __atomic_add_fetch(&at_work, 1, __ATOMIC_SEQ_CST), most = GET(most_at_work);
    while (now > most &&
           !__atomic_compare_exchange_n(&most_at_work, &most, now, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST))
        continue;
    self->at_once = now;
    SET(self->begun, 1);
    while (!GET(self->may_end))
        nap();
    __atomic_sub_fetch(&at_work, 1, __ATOMIC_SEQ_CST);
    SET(self->ended, 1);
}

static void start_held(struct pool_job *job) { SET(((struct held_job *)job)->started, 1); }

static void begin_pool(void) { EXPECT(pool_make(&pool) == 0); }

static void begin_queue(size_t number, uint64_t hub, unsigned limit, uint64_t device)
{
    EXPECT(pool_queue_make(pool, &queues[number], hub, limit, device));
}

static void submit(size_t first, size_t count, size_t queue, bool held)
{
    struct pool_link list;
    pool_list_make(&list);
    for (size_t i = first; i < first + count; i++) {
        jobs[i] = (struct held_job){.job = {.queue = &queues[queue], .run = run_held},
                                    .may_end = !held};
        pool_list_append(&list, &jobs[i].job);
    }
    EXPECT(pool_submit(pool, &list) == 0 && pool_list_is_empty(&list));
}

/* Take jobs that land, in that order, until `count` have. */
static void land(size_t count, struct pool_job **order)
{
    for (size_t got = 0; got < count;) {
        struct pollfd ready = {.fd = pool_descriptor(pool), .events = POLLIN};
        EXPECT(poll(&ready, 1, 20000) == 1);
        for (struct pool_job *job = pool_landed(pool, true); job; job = job->below, got++)
            if (order)
                order[got] = job;
    }
}

/* The same for jobs that can be started. */
static void submit_startable(size_t first, size_t count, size_t queue, bool held)
{
    struct pool_link list;
    pool_list_make(&list);
    for (size_t i = first; i < first + count; i++) {
        jobs[i] = (struct held_job){
            .job = {.queue = &queues[queue], .start = start_held, .run = run_held}, .may_end = !held};
        pool_list_append(&list, &jobs[i].job);
    }
    EXPECT(pool_submit(pool, &list) == 0);
}

static void let_go(size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++)
        SET(jobs[i].may_end, 1);
}

static size_t begun(size_t first, size_t count)
{
    size_t found = 0;
    for (size_t i = first; i < first + count; i++)
        found += (size_t)GET(jobs[i].begun);
    return found;
}

static void until_begun(size_t first, size_t count, size_t wanted)
{
    while (begun(first, count) < wanted)
        nap();
}

/* Every job that is submitted runs and lands once, in however many lists. */
static void pool_runs_all(void)
{
    begin_pool();
    begin_queue(0, 1, POOL_NO_LIMIT, 1);
    begin_queue(1, 1, POOL_NO_LIMIT, 1);
    begin_queue(2, 2, POOL_NO_LIMIT, 2);
    for (size_t round = 0; round < 20; round++) {
        for (size_t at = 0; at < JOBS; at += JOBS / 40)
            submit(at, JOBS / 40, (at / (JOBS / 40)) % 3, false);
        land(JOBS, NULL);
        for (size_t i = 0; i < JOBS; i++)
            EXPECT(jobs[i].ended == 1);
        EXPECT(!pool_landed(pool, true));
    }
    for (size_t i = 0; i < 3; i++)
        pool_queue_drop(pool, &queues[i]);
    pool_drop(pool);
}

/* One job at a time, so the order shows: the files of a hub take turns. */
static void pool_is_fair(void)
{
    struct pool_job *order[30];
    begin_pool();
    begin_queue(0, 1, 1, 1);
    begin_queue(1, 1, 1, 1);
    submit(0, 1, 0, true);
    until_begun(0, 1, 1);
    submit(1, 20, 0, false);
    submit(21, 5, 1, false);
    let_go(0, 1);
    land(26, order);
    EXPECT(order[0] == &jobs[0].job);
    for (size_t i = 0; i < 10; i++) { /* by turns while both files have some */
        size_t file = i % 2, number = i / 2;
        EXPECT(order[1 + i] == &jobs[file ? 21 + number : 1 + number].job ||
               order[1 + i] == &jobs[file ? 1 + number : 21 + number].job);
    }
    for (size_t i = 11; i < 26; i++)
        EXPECT(order[i] == &jobs[6 + i - 11].job);
    pool_queue_drop(pool, &queues[0]);
    pool_queue_drop(pool, &queues[1]);
    pool_drop(pool);
}

static void pool_keeps_limits(void)
{
    begin_pool();
    begin_queue(0, 1, 3, 1);
    submit(0, 200, 0, false);
    land(200, NULL);
    EXPECT(most_at_work <= 3);
    begin_queue(1, 1, 0, 1); /* no job may begin from now on */
    submit(0, 10, 0, false);
    EXPECT(pool_withdraw(pool, &jobs[4].job) && !pool_withdraw(pool, &jobs[4].job));
    EXPECT(begun(0, 10) == 0);
    begin_queue(2, 1, 2, 1);
    land(9, NULL);
    EXPECT(begun(0, 10) == 9 && !jobs[4].begun && most_at_work <= 3);
    for (size_t i = 0; i < 3; i++)
        pool_queue_drop(pool, &queues[i]);
    pool_drop(pool);
}

/* A device that hangs gets more threads, but not all of them; other devices go on, even a second
 * and a third one that hang. */
static void pool_survives_hangs(void)
{
    size_t hang = 200, at = 0;
    begin_pool();
    for (size_t device = 0; device < 4; device++) {
        begin_queue(device, 1, POOL_NO_LIMIT, device);
        submit(at, hang, device, true);
        until_begun(at, hang, device ? 1 : 64);
        at += hang;
    }
    begin_queue(4, 2, POOL_NO_LIMIT, 9);
    submit(at, 1, 4, false);
    land(1, NULL);
    EXPECT(begun(0, hang) == 64 && GET(at_work) <= (int)POOL_WIDTH_MAX);
    let_go(0, at);
    land(at, NULL);
    EXPECT(most_at_work <= (int)POOL_WIDTH_MAX);
    for (size_t i = 0; i < 5; i++)
        pool_queue_drop(pool, &queues[i]);
    pool_drop(pool);
}

/* The width grows by the jobs that hang, and falls back once they have ended. */
static void pool_adapts(void)
{
    size_t hang = 64, quick = JOBS - 64;
    begin_pool();
    begin_queue(0, 1, POOL_NO_LIMIT, 1);
    begin_queue(1, 1, POOL_NO_LIMIT, 2);
    EXPECT(pool_width(pool) == POOL_WIDTH);
    submit(0, hang, 0, true);
    until_begun(0, hang, hang);
    while (pool_width(pool) < POOL_WIDTH_MAX) {
        submit(hang, quick, 1, false);
        land(quick, NULL);
    }
    for (size_t round = 0; round < 5; round++) {
        submit(hang, quick, 1, false);
        land(quick, NULL);
        EXPECT(pool_width(pool) == POOL_WIDTH_MAX);
    }
    let_go(0, hang);
    land(hang, NULL);
    while (pool_width(pool) > POOL_WIDTH) {
        submit(hang, quick, 1, false);
        land(quick, NULL);
    }
    pool_queue_drop(pool, &queues[0]);
    pool_queue_drop(pool, &queues[1]);
    pool_drop(pool);
}

/* There are no more threads than the jobs need, and one that watches. */
static void pool_stays_small(void)
{
    begin_pool();
    begin_queue(0, 1, POOL_NO_LIMIT, 1);
    EXPECT(pool_threads(pool) == 0);
    for (size_t i = 0; i < 500; i++) {
        submit(i, 1, 0, false);
        land(1, NULL);
    }
    EXPECT(pool_threads(pool) <= 3);
    pool_queue_drop(pool, &queues[0]);
    pool_drop(pool);
}

static void pool_withdraws(void)
{
    begin_pool();
    begin_queue(0, 1, 1, 1);
    for (size_t round = 0; round < 50; round++) {
        submit(0, 40, 0, false);
        size_t withdrawn = 0;
        for (size_t i = 40; i-- > 0;)
            withdrawn += pool_withdraw(pool, &jobs[i].job);
        land(40 - withdrawn, NULL);
        EXPECT(begun(0, 40) == 40 - withdrawn && !pool_landed(pool, true));
    }
    pool_queue_drop(pool, &queues[0]);
    pool_drop(pool);
}

static void pool_reads(void)
{
    struct pool_read reads[PAGES + 2] = {0};
    struct pool_link list;
    begin_pool();
    begin_queue(0, 1, POOL_NO_LIMIT, 1);
    pool_list_make(&list);
    for (size_t i = 0; i < PAGES + 2; i++) {
        reads[i] = (struct pool_read){.job = {.queue = &queues[0], .run = pool_read_own},
                                      .fd = i > PAGES ? -1 : file, .offset = (off_t)(i * page),
                                      .length = page + (i + 1 < PAGES ? 0 : 7),
                                      .to = malloc(page + 7)};
        pool_list_append(&list, &reads[i].job);
    }
    EXPECT(pool_submit(pool, &list) == 0);
    land(PAGES + 2, NULL);
    for (size_t i = 0; i < PAGES; i++)
        EXPECT(reads[i].got == (ssize_t)page && reads[i].to[page - 1] == 'm');
    EXPECT(reads[PAGES].got == 0 && reads[PAGES + 1].got == -EBADF);
    pool_queue_drop(pool, &queues[0]);
    pool_drop(pool);
}

/* Submit jobs one at a time, while others are submitted in lists, withdrawn and landed. */
static void pool_takes_single_jobs(void)
{
    begin_pool();
    begin_queue(0, 1, 4, 1);
    begin_queue(1, 2, POOL_NO_LIMIT, 1);
    for (size_t round = 0; round < 40; round++) {
        size_t withdrawn = 0;
        submit(0, 20, 0, false);
        for (size_t i = 20; i < 40; i++) {
            jobs[i] = (struct held_job){.job = {.queue = &queues[1], .run = run_held}, .may_end = 1};
            EXPECT(pool_submit_one(pool, &jobs[i].job));
            withdrawn += pool_withdraw(pool, &jobs[i - 20].job);
        }
        land(40 - withdrawn, NULL);
        EXPECT(begun(20, 20) == 20 && !pool_landed(pool, true));
    }
    pool_queue_drop(pool, &queues[0]);
    pool_queue_drop(pool, &queues[1]);
    pool_drop(pool);
}

static size_t started(size_t first, size_t count)
{
    size_t found = 0;
    for (size_t i = first; i < first + count; i++)
        found += (size_t)GET(jobs[i].started);
    return found;
}

/* Up to POOL_PAIRS jobs have a thread each. From then on two of one file share a thread, and both
 * are started. */
static void pool_starts_pairs(void)
{
    size_t pairs = (POOL_WIDTH - POOL_PAIRS + 1) / 2, alone = POOL_WIDTH - 2 * pairs;
    begin_pool();
    begin_queue(0, 1, POOL_NO_LIMIT, 1);
    submit_startable(0, POOL_WIDTH, 0, true);
    until_begun(0, POOL_WIDTH, alone + pairs);
    EXPECT(started(0, POOL_WIDTH) == 2 * pairs && GET(at_work) == (int)(alone + pairs));
    for (size_t i = 0; i < POOL_WIDTH; i++)
        EXPECT(!pool_withdraw(pool, &jobs[i].job));
    let_go(0, POOL_WIDTH);
    land(POOL_WIDTH, NULL);
    EXPECT(begun(0, POOL_WIDTH) == POOL_WIDTH && most_at_work == (int)(alone + pairs));
    pool_queue_drop(pool, &queues[0]);
    pool_drop(pool);
}

/* No pair is made of jobs of two files, with one that cannot be started, or beyond a limit. */
static void pool_pairs_no_others(void)
{
    begin_pool();
    begin_queue(0, 1, POOL_NO_LIMIT, 1);
    begin_queue(1, 2, POOL_PAIRS + 1, 1);
    begin_queue(2, 3, POOL_NO_LIMIT, 1);
    begin_queue(3, 4, POOL_NO_LIMIT, 1);
    begin_queue(4, 5, 0, 1);
    submit(0, POOL_PAIRS, 0, true);
    until_begun(0, POOL_PAIRS, POOL_PAIRS);
    submit_startable(100, 1, 2, true);
    submit_startable(101, 1, 3, true);
    submit_startable(102, 1, 4, true);
    submit(103, 1, 4, true);
    begin_queue(5, 5, POOL_NO_LIMIT, 1); /* now both may run */
    until_begun(100, 4, 4);
    EXPECT(started(100, 4) == 0);
    let_go(0, POOL_PAIRS);
    let_go(100, 4);
    land(POOL_PAIRS + 4, NULL);
    submit_startable(0, POOL_PAIRS + 3, 1, true); /* of a hub that may run one more */
    until_begun(0, POOL_PAIRS, POOL_PAIRS);
    EXPECT(begun(0, POOL_PAIRS + 3) == POOL_PAIRS && started(0, POOL_PAIRS + 3) == 2);
    let_go(0, POOL_PAIRS + 3);
    land(POOL_PAIRS + 3, NULL);
    for (size_t i = 0; i < 6; i++)
        pool_queue_drop(pool, &queues[i]);
    pool_drop(pool);
}

/* One file and one job at a time: the next one begins after the last one has landed. */
static void pool_tells_nobody_who_is_expected(void)
{
    struct pollfd ready;
    begin_pool();
    begin_queue(0, 1, 1, 1);
    ready = (struct pollfd){.fd = pool_descriptor(pool), .events = POLLIN};
    submit(0, 2, 0, true);
    pool_expect(pool);
    let_go(0, 1);
    until_begun(1, 1, 1);
    EXPECT(poll(&ready, 1, 0) == 0);
    EXPECT(pool_landed(pool, false) == &jobs[0].job && !pool_landed(pool, false));
    let_go(1, 1);
    EXPECT(poll(&ready, 1, 20000) == 1);
    EXPECT(pool_landed(pool, true) == &jobs[1].job && poll(&ready, 1, 0) == 0);
    pool_queue_drop(pool, &queues[0]);
    pool_drop(pool);
}

/* An owner that was expected learns of what lands after it came, however close. */
static void pool_loses_nothing_that_was_expected(void)
{
    begin_pool();
    begin_queue(0, 1, POOL_NO_LIMIT, 1);
    for (size_t round = 0; round < 200; round++) {
        size_t got = 0;
        submit(0, 40, 0, false);
        for (size_t turn = 0; turn < round % 8; turn++) {
            pool_expect(pool);
            for (struct pool_job *job = pool_landed(pool, false); job; job = job->below)
                got++;
        }
        land(40 - got, NULL);
        EXPECT(begun(0, 40) == 40);
    }
    pool_queue_drop(pool, &queues[0]);
    pool_drop(pool);
}

/* A pool is dropped at every moment in the life of its threads. */
static void pool_ends(void)
{
    for (size_t round = 0; round < 200; round++) {
        begin_pool();
        begin_queue(0, 1, POOL_NO_LIMIT, 1);
        submit(0, round % 40, 0, false);
        land(round % 40, NULL);
        pool_queue_drop(pool, &queues[0]);
        pool_drop(pool);
    }
}

static const struct test_case cases[] = {
    {"pool_runs_all", pool_runs_all},
    {"pool_is_fair", pool_is_fair},
    {"pool_keeps_limits", pool_keeps_limits},
    {"pool_survives_hangs", pool_survives_hangs},
    {"pool_adapts", pool_adapts},
    {"pool_stays_small", pool_stays_small},
    {"pool_withdraws", pool_withdraws},
    {"pool_reads", pool_reads},
    {"pool_takes_single_jobs", pool_takes_single_jobs},
    {"pool_starts_pairs", pool_starts_pairs},
    {"pool_pairs_no_others", pool_pairs_no_others},
    {"pool_tells_nobody_who_is_expected", pool_tells_nobody_who_is_expected},
    {"pool_loses_nothing_that_was_expected", pool_loses_nothing_that_was_expected},
    {"pool_ends", pool_ends},
};

RUN_CASES
