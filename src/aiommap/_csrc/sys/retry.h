/* retry.h: system calls that a signal ended before they did anything. */
#ifndef AIOMMAP_RETRY_H
#define AIOMMAP_RETRY_H

#include <errno.h>

/* Make a call that returns 0, or -1 with errno, again until no signal ends it. For FUSE and NFS the
 * call waits for a server, and a signal may end that wait, which says nothing about the file. */
#define UNINTERRUPTED(failed, call)                                                               \
    do                                                                                            \
        (failed) = (call);                                                                        \
    while ((failed) && errno == EINTR)

#endif
