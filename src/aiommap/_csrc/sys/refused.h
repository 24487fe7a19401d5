/* refused.h: system calls that this process cannot make, whatever the file. Knows nothing of Python.
 *
 * An old kernel answers ENOSYS to a call that it does not know, and a sandbox's filter answers EPERM
 * or ENOSYS to one that it does not let pass. But EPERM may also be said of a file, immutable or
 * sealed. So a call that failed with one of the two is made once more, with a descriptor or an address
 * that no kernel takes: a call that reaches the kernel has another answer to that (EBADF, EINVAL).
 * What was found to be refused stays so for the process, as filters are never lifted.
 */
#ifndef AIOMMAP_REFUSED_H
#define AIOMMAP_REFUSED_H

#include <stdbool.h>

enum call {
    CALL_CACHESTAT,
    CALL_FALLOCATE,
    CALL_FDATASYNC,
    CALL_FSTATFS,
    CALL_FUTEX_WAITV,
    CALL_MINCORE,
    CALL_MLOCK2,
    CALL_MSYNC,
    CALL_POPULATE_READ,
    CALL_POPULATE_WRITE,
    CALL_PREADV2,
    CALL_PWRITEV,
    CALL_PWRITEV2,
    CALL_STATX,
    CALL_SYNC_FILE_RANGE,
    CALL_COUNT
};

/* Whether a call that failed with an errno number is refused to the process. */
bool call_is_refused(enum call call, int error);
/* Atomic; written by refused.c; true never becomes false again. */
extern unsigned char refused_calls[CALL_COUNT];

/* Whether that was found out before, so that the call need not be made. */
static inline bool call_was_refused(enum call call)
{
    return __atomic_load_n(&refused_calls[call], __ATOMIC_RELAXED);
}

#endif
