/* time_slice.h: how long a loop thread may run inline verbs before it gives way. Knows nothing of
 * Python.
 *
 * An inline verb takes a microsecond; a full checkpoint in each verb would cost more than the verb.
 * So a thread is granted a *time slice*. Verbs inside the slice do not give way; the first verb
 * after it does. Several tasks that do nothing else take turns, and a turn of the loop must not
 * become longer with their number. So the grant after a yield is the budget divided by the number
 * of tasks that yielded in the same turn. That number is the count of yields that happened while
 * this task was away.
 */
#ifndef AIOMMAP_TIME_SLICE_H
#define AIOMMAP_TIME_SLICE_H

#include <stdbool.h>
#include <stdint.h>

#include "clock.h"
#include "per_thread.h"

#define TIME_SLICE_BUDGET_NS 500000 /* all tasks together, per turn of the loop */
#define TIME_SLICE_MAX_NS 2000000 /* those that wake together */
#define TIME_SLICE_WOKEN_NS 10000 /* each of these */
#define TIME_SLICE_MIN_NS 20000 /* one task; a switch takes 2 to 3 us, so it costs an eighth */

struct time_slice { /* each by its own thread; written by time_slice.h */
    int64_t deadline; /* of monotonic_clock */
    uint64_t yields;
};

extern PER_THREAD struct time_slice thread_time_slice;

static inline bool time_slice_is_spent(const struct time_slice *slice, int64_t now)
{
    return now >= slice->deadline;
}

void time_slice_grant(struct time_slice *slice, uint64_t yields_before);
/* Grant a slice to tasks that wake together after they have waited for something: all of them run
 * in this turn in any case, and it would only become longer if each of them yielded. */
void time_slice_grant_woken(struct time_slice *slice, uint64_t tasks);

/* Count a yield; returns the number of those before it. */
static inline uint64_t time_slice_yield(struct time_slice *slice) { return slice->yields++; }

#endif
