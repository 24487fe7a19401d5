/* retry.h: system calls that a signal ended before they did anything. */
#ifndef AIOMMAP_RETRY_H
#define AIOMMAP_RETRY_H

#include <errno.h>

/* Make a call that returns 0, or -1 with errno, until no signal ends it. Where a server answers, as
 * for FUSE and NFS, a signal may end the wait for it, which says nothing of the file. */
#define UNINTERRUPTED(failed, call)                                                               \
    do                                                                                            \
        (failed) = (call);                                                                        \
    while ((failed) && errno == EINTR)

#endif
