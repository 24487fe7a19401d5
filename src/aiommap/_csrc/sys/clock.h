/* clock.h: the two clocks, in nanoseconds of CLOCK_MONOTONIC. Knows nothing of Python. */
#ifndef AIOMMAP_CLOCK_H
#define AIOMMAP_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t clock_read(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline int64_t monotonic_clock(void) { return clock_read(CLOCK_MONOTONIC); }

/* A clock that is read in a few nanoseconds and advances every few milliseconds. */
static inline int64_t coarse_clock(void)
{
#ifdef CLOCK_MONOTONIC_COARSE
    return clock_read(CLOCK_MONOTONIC_COARSE);
#else
    return clock_read(CLOCK_MONOTONIC);
#endif
}

#endif
