/* time_slice.h: how long a loop thread may go on with verbs that never give way.
 *
 * An inline verb takes a microsecond; a full checkpoint in each would cost more than the verb. So
 * a thread is granted a *slice* of time; verbs inside it do not yield, the first verb after it
 * does. Several tasks that do nothing else take turns, and a turn of the loop must not grow with
 * their number: the grant after a yield is the budget divided by the number of tasks that yielded
 * in the same turn, which is just the number of yields that happened while this task was away.
 */
#ifndef AIOMMAP_SLICE_H
#define AIOMMAP_SLICE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define SLICE_BUDGET_NS 500000 /* all tasks together, per turn of the loop */
#define SLICE_MINIMUM_NS 20000 /* one task; a switch takes 2 to 3 us, so it costs an eighth */

/* Touched only by its own thread. */
struct time_slice {
    int64_t deadline; /* CLOCK_MONOTONIC nanoseconds */
    uint64_t yields;
};

static inline int64_t monotonic_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline bool time_slice_is_spent(const struct time_slice *slice, int64_t now)
{
    return now >= slice->deadline;
}

static inline void time_slice_grant(struct time_slice *slice, uint64_t yields_before)
{
    uint64_t sharers = slice->yields - yields_before;
    int64_t grant = SLICE_BUDGET_NS / (int64_t)(sharers ? sharers : 1);
    if (grant < SLICE_MINIMUM_NS)
        grant = SLICE_MINIMUM_NS;
    slice->deadline = monotonic_clock() + grant;
}

#endif
