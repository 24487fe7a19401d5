/* refused.h: system calls that this process cannot make, on whatever file. Knows nothing of Python.
 *
 * An old kernel answers ENOSYS to a call that it does not know, and a sandbox's filter answers
 * EPERM or ENOSYS to one that it does not let pass. But EPERM may also be about the file, which is
 * immutable or sealed. So after one of the two errors we make the call once more, with a descriptor
 * or an address that no kernel takes: if the call reaches the kernel, that has another answer
 * (EBADF, EINVAL). A call that was found to be refused stays so for the process, as filters are
 * never lifted.
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

/* Whether a call was found to be refused before, so that it need not be made. */
static inline bool call_was_refused(enum call call)
{
    return __atomic_load_n(&refused_calls[call], __ATOMIC_RELAXED);
}

#endif
