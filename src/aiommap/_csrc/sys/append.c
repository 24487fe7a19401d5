#include "append.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "file_io.h"
#include "full_disk.h"
#include "page.h"
#include "refused.h"
#include "retry.h"

enum { KEEP_SIZE = 1, PUNCH_HOLE = 2 }; /* of fallocate(2) */

static int allocate(int fd, int mode, int64_t from, int64_t end)
{
#ifdef __linux__
    int failed;
    if (call_was_refused(CALL_FALLOCATE))
        return ENOSYS;
    UNINTERRUPTED(failed, fallocate(fd, mode, (off_t)from, (off_t)(end - from)));
    if (!failed)
        return 0;
    return call_is_refused(CALL_FALLOCATE, errno) ? ENOSYS : errno;
#else
    (void)fd, (void)mode, (void)from, (void)end;
    return ENOSYS;
#endif
}

/* Why a write to the end of the file stopped short. The kernel tells the reason only to the next
 * write. That one would have to begin where this one ended, and others may come in between. */
static int why_short(int fd, int64_t end, size_t missing)
{
    struct rlimit most;
    if (!getrlimit(RLIMIT_FSIZE, &most) && most.rlim_cur <= (rlim_t)end)
        return EFBIG;
    int error = allocate(fd, KEEP_SIZE, end, end + (int64_t)missing);
    return is_full(error) ? error : EIO;
}

void append_shared(int fd, const struct iovec *pieces, int count, struct appended *out)
{
    size_t wanted = 0;
    ssize_t put;
    for (int i = 0; i < count; i++)
        wanted += pieces[i].iov_len;
    do
        put = writev(fd, pieces, count);
    while (put < 0 && errno == EINTR);
    int error = put < 0 ? errno : 0;
    int64_t end = lseek(fd, 0, put < 0 || !wanted ? SEEK_END : SEEK_CUR);
    *out = (struct appended){end - (put < 0 ? 0 : put), put < 0 ? 0 : (size_t)put, error};
    if (put >= 0 && out->put < wanted)
        out->error = why_short(fd, end, wanted - out->put);
}

/* Without fallocate(2): append zeros, wherever the end is by then. The file may become longer than
 * asked for. */
static int append_zeros(int fd, int64_t length)
{
    static const char zeros[1 << 16];
    struct file_stat found;
    int error = file_stat(fd, &found);
    while (!error && found.size < length) {
        int64_t left = length - found.size;
        ssize_t put = write(fd, zeros, left < (int64_t)sizeof zeros ? (size_t)left : sizeof zeros);
        if (put < 0 && errno != EINTR)
            return errno;
        error = file_stat(fd, &found);
    }
    return error;
}

int append_zeros_to(int fd, int64_t length, bool sparse)
{
    struct file_stat found;
    int error = file_stat(fd, &found);
    if (error || found.size >= length)
        return error;
    struct rlimit most;
    if (!getrlimit(RLIMIT_FSIZE, &most) && most.rlim_cur < (rlim_t)length)
        return EFBIG;
    if (!sparse) {
        error = allocate(fd, KEEP_SIZE, found.size, length);
        if (is_full(error)) { /* the blocks that it got are behind the end of the file */
            allocate(fd, PUNCH_HOLE | KEEP_SIZE, found.size, length);
            return error;
        }
    }
    error = allocate(fd, 0, sparse ? length - 1 : found.size, length);
    if (!error || is_full(error) || error == EIO || error == EINTR)
        return error;
    return append_zeros(fd, length);
}
