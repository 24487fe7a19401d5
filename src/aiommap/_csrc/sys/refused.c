#include "refused.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <sys/vfs.h>
#endif
#include <unistd.h>

unsigned char refused_calls[CALL_COUNT];

#if defined(__linux__)
/* Linux's numbers: headers may be older than the kernel. */
enum { CACHESTAT = 451, FUTEX_WAITV = 449, POPULATE_READ = 22, POPULATE_WRITE = 23 };

/* Make a call as we always make it, but on nothing that exists: it fails, and this returns how. A
 * filter sees only numbers and plain arguments, and decides before the kernel looks at them. */
static int answer_to_nothing(enum call call)
{
    char byte = 0, *nowhere = (char *)1; /* no page begins there */
    struct iovec piece = {&byte, 1};
    struct statfs types;
    long failed = 0;
    switch (call) {
    case CALL_CACHESTAT:
        failed = syscall(CACHESTAT, -1, NULL, NULL, 0);
        break;
    case CALL_FALLOCATE:
        failed = fallocate(-1, FALLOC_FL_KEEP_SIZE, 0, 1);
        break;
    case CALL_FDATASYNC:
        failed = fdatasync(-1);
        break;
    case CALL_FSTATFS:
        failed = fstatfs(-1, &types);
        break;
    case CALL_FUTEX_WAITV:
        failed = syscall(FUTEX_WAITV, NULL, 0, 0, NULL, 0);
        break;
    case CALL_MINCORE:
        failed = mincore(nowhere, 1, (void *)&byte);
        break;
    case CALL_MLOCK2:
        failed = syscall(SYS_mlock2, nowhere, 1, ~0);
        break;
    case CALL_MSYNC:
        failed = msync(nowhere, 1, MS_SYNC);
        break;
    case CALL_POPULATE_READ:
        failed = madvise(nowhere, 1, POPULATE_READ);
        break;
    case CALL_POPULATE_WRITE:
        failed = madvise(nowhere, 1, POPULATE_WRITE);
        break;
    case CALL_PREADV2:
        failed = syscall(SYS_preadv2, -1, &piece, 1, 0L, 0L, 8);
        break;
    case CALL_PWRITEV:
        failed = pwritev(-1, &piece, 1, 0);
        break;
    case CALL_PWRITEV2:
        failed = syscall(SYS_pwritev2, -1, &piece, 1, 0L, 0L, 16);
        break;
    case CALL_STATX:
        failed = syscall(SYS_statx, -1, "", AT_EMPTY_PATH, 0, &byte);
        break;
    case CALL_SYNC_FILE_RANGE:
        failed = sync_file_range(-1, 0, 1, SYNC_FILE_RANGE_WRITE);
        break;
    default:
        break;
    }
    return failed ? errno : 0;
}
#else
static int answer_to_nothing(enum call call)
{
    (void)call;
    return ENOSYS;
}
#endif

bool call_is_refused(enum call call, int error)
{
    if (error != EPERM && error != ENOSYS)
        return false;
    int saved = errno, answer = answer_to_nothing(call);
    errno = saved;
    if (answer != EPERM && answer != ENOSYS)
        return false;
    __atomic_store_n(&refused_calls[call], true, __ATOMIC_RELAXED);
    return true;
}
