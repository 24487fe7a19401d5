/* thread_waits.h: whether a thread waited, or merely lost the processor. Knows nothing of Python. */
#ifndef AIOMMAP_THREAD_WAITS_H
#define AIOMMAP_THREAD_WAITS_H

#include <sys/resource.h>

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

#endif
