/* thread_waits.h: whether a thread waited, or merely lost the processor. Knows nothing of Python.
 *
 * A thread that waits gives the processor up, or it spins for a lock whose owner runs: while it
 * spins, its own clock goes on.
 */
#ifndef AIOMMAP_THREAD_WAITS_H
#define AIOMMAP_THREAD_WAITS_H

#include <sys/resource.h>

#include "clock.h"

/* How often this thread gave up the processor to wait for something. Takes 0.4 us. */
static inline long thread_waits(void)
{
#ifdef RUSAGE_THREAD
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_nvcsw;
#else
    return 0;
#endif
}

/* For how many nanoseconds this thread has run, without the time that the host took away, where the
 * host tells that. Takes 0.5 us. */
static inline int64_t thread_clock(void) { return clock_read(CLOCK_THREAD_CPUTIME_ID); }

#endif
