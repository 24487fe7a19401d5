#include "file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <sys/vfs.h>
#endif
#include <unistd.h>

#include "full_disk.h"
#include "page.h"
#include "refused.h"
#include "retry.h"

ssize_t file_read_nowait(int fd, char *to, size_t length, off_t offset)
{
#if defined(__linux__)
    /* The system call itself, by its number: musl has a function for it only since 1.2.5. The
     * kernel takes the offset in halves, and with 64 bits ignores the second. */
    const int nowait = 8;
    if (call_was_refused(CALL_PREADV2))
        return -ENOSYS;
    struct iovec piece = {.iov_base = to, .iov_len = length};
    long low = (long)offset, high = (long)(offset >> 32);
    ssize_t got = syscall(SYS_preadv2, fd, &piece, 1, low, high, nowait);
    if (got >= 0)
        return got;
    return call_is_refused(CALL_PREADV2, errno) ? -ENOSYS : -errno;
#else
    (void)fd, (void)to, (void)length, (void)offset;
    return -ENOSYS;
#endif
}

ssize_t file_read(int fd, char *to, size_t length, off_t offset)
{
    size_t done = 0;
    while (done < length) {
        size_t piece = length - done < PIECE_BYTES ? length - done : PIECE_BYTES;
        ssize_t got = pread(fd, to + done, piece, offset + (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

ssize_t file_read_own(int fd, char *to, size_t length, off_t offset)
{
    ssize_t got = file_read(fd, to, length, offset);
    return got < 0 ? got : (ssize_t)file_own(fd, offset, (size_t)got);
}

size_t file_own(int fd, off_t offset, size_t got)
{
    off_t end = lseek(fd, 0, SEEK_END);
    if (end < 0 || end - offset >= (off_t)got)
        return got;
    return end > offset ? (size_t)(end - offset) : 0;
}

static ssize_t write_pieces(int fd, const struct iovec *pieces, int count, off_t offset)
{
    if (!call_was_refused(CALL_PWRITEV)) {
        ssize_t put = pwritev(fd, pieces, count, offset);
        if (put >= 0 || !call_is_refused(CALL_PWRITEV, errno))
            return put;
    }
    return pwrite(fd, pieces->iov_base, pieces->iov_len, offset);
}

size_t file_write(int fd, struct iovec *pieces, int count, off_t offset, int *error)
{
    size_t done = 0;
    *error = 0;
    while (count) {
        ssize_t put = write_pieces(fd, pieces, count, offset + (off_t)done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            *error = put < 0 ? errno : 0;
            break;
        }
        done += (size_t)put;
        for (; count && (size_t)put >= pieces->iov_len; pieces++, count--)
            put -= (ssize_t)pieces->iov_len;
        if (count) {
            pieces->iov_base = (char *)pieces->iov_base + put;
            pieces->iov_len -= (size_t)put;
        }
    }
    return done;
}

size_t file_write_one(int fd, const char *from, size_t length, off_t offset, int *error)
{
    size_t done = 0;
    *error = 0;
    while (done < length) {
        ssize_t put = pwrite(fd, from + done, length - done, offset + (off_t)done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            *error = put < 0 ? errno : 0;
            break;
        }
        done += (size_t)put;
    }
    return done;
}

/* By statx(2), without the times: after somebody has asked for the times of a file, its next write
 * takes a fresh one (multigrain timestamps, Linux 6.13). That dirties the inode, and makes the
 * flush after it wait for longer (docs/decisions.md). */
int file_stat(int fd, struct file_stat *out)
{
    *out = (struct file_stat){0};
#ifdef STATX_SIZE
    if (!call_was_refused(CALL_STATX)) {
        struct statx seen;
        if (!statx(fd, "", AT_EMPTY_PATH, STATX_SIZE | STATX_BLOCKS | STATX_NLINK, &seen)) {
            *out = (struct file_stat){(int64_t)seen.stx_size, (int64_t)seen.stx_blocks,
                                     seen.stx_nlink};
            return 0;
        }
        if (!call_is_refused(CALL_STATX, errno))
            return errno;
    }
#endif
    struct stat found;
    if (fstat(fd, &found))
        return errno;
    *out = (struct file_stat){found.st_size, found.st_blocks, found.st_nlink};
    return 0;
}

bool file_reaches(int fd, off_t end, bool *solid)
{
    struct file_stat found;
    bool reached = file_stat(fd, &found) == 0 && found.size >= end;
    *solid = reached && found.blocks * 512 >= found.size;
    return reached;
}

int64_t file_size(int fd) { return lseek(fd, 0, SEEK_END); }

int64_t file_find_data(int fd, int64_t offset, int64_t end)
{
#ifdef SEEK_DATA
    off_t data = lseek(fd, offset, SEEK_DATA);
    if (data > offset)
        return data < end ? data : end;
    if (data < 0 && errno == ENXIO)
        return end;
#else
    (void)fd, (void)end;
#endif
    return offset;
}

int64_t file_find_hole(int fd, int64_t offset, int64_t end)
{
#ifdef SEEK_HOLE
    off_t hole = lseek(fd, offset, SEEK_HOLE);
    if (hole >= 0 && hole < end)
        return hole;
#else
    (void)fd, (void)offset;
#endif
    return end;
}

bool file_is_hole(int fd, off_t offset, off_t end)
{
#ifdef SEEK_DATA
    off_t data = lseek(fd, offset, SEEK_DATA);
    return data >= end || (data < 0 && errno == ENXIO && file_size(fd) >= end);
#else
    (void)fd, (void)offset, (void)end;
    return false;
#endif
}

bool file_has_blocks(int fd, off_t offset, off_t end)
{
#ifdef SEEK_HOLE
    return lseek(fd, offset, SEEK_HOLE) >= end;
#else
    (void)fd, (void)offset, (void)end;
    return false;
#endif
}

int file_fill_holes(int fd, off_t offset, off_t end)
{
#if defined(__linux__)
    off_t hole = lseek(fd, offset, SEEK_HOLE);
    if (hole < 0 || hole >= end || call_was_refused(CALL_FALLOCATE))
        return 0;
    int failed;
    UNINTERRUPTED(failed, fallocate(fd, FALLOC_FL_KEEP_SIZE, hole, end - hole));
    return failed && is_full(errno) ? errno : 0;
#else
    (void)fd, (void)offset, (void)end;
    return 0;
#endif
}

int file_sync(int fd, bool metadata)
{
#if defined(__APPLE__)
    /* fsync(2) on macOS stops at the drive's cache. Untested. */
    (void)metadata;
    if (fcntl(fd, F_FULLFSYNC) == 0)
        return 0;
    return fsync(fd) ? errno : 0;
#else
    int failed;
    if (!metadata && !call_was_refused(CALL_FDATASYNC)) {
        UNINTERRUPTED(failed, fdatasync(fd));
        if (!failed || !call_is_refused(CALL_FDATASYNC, errno))
            return failed ? errno : 0;
    }
    UNINTERRUPTED(failed, fsync(fd));
    return failed ? errno : 0;
#endif
}

int file_start_writeback(int fd, off_t offset, off_t length)
{
#if defined(__linux__)
    if (!sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE))
        return 0;
    return call_is_refused(CALL_SYNC_FILE_RANGE, errno) ? ENOSYS : errno;
#else
    (void)fd, (void)offset, (void)length;
    return ENOSYS;
#endif
}

int64_t file_birth(int fd)
{
#if defined(STATX_BTIME)
    struct statx found;
    if (!statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &found) && found.stx_mask & STATX_BTIME)
        return (int64_t)found.stx_btime.tv_sec * 1000000000 + found.stx_btime.tv_nsec;
#else
    (void)fd;
#endif
    return -1;
}

int file_system_sync(int fd)
{
#if defined(__linux__)
    int failed;
    UNINTERRUPTED(failed, syncfs(fd));
    return failed ? errno : 0;
#else
    (void)fd;
    return ENOSYS;
#endif
}

int file_system_type(int fd, int64_t *type)
{
    *type = 0;
#if defined(__linux__)
    struct statfs found;
    if (fstatfs(fd, &found))
        return call_is_refused(CALL_FSTATFS, errno) ? 0 : errno;
    *type = (int64_t)found.f_type;
#else
    (void)fd;
#endif
    return 0;
}

int file_punch_hole(int fd, off_t offset, off_t length)
{
#if defined(__linux__)
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    int failed;
    UNINTERRUPTED(failed, fallocate(fd, mode, offset, length));
    if (!failed)
        return 0;
    return call_is_refused(CALL_FALLOCATE, errno) ? ENOSYS : errno;
#else
    (void)fd, (void)offset, (void)length;
    return ENOSYS;
#endif
}

int file_read_ahead(int fd, off_t offset, size_t length)
{
#if defined(POSIX_FADV_WILLNEED)
    return posix_fadvise(fd, offset, (off_t)length, POSIX_FADV_WILLNEED);
#else
    (void)fd, (void)offset, (void)length;
    return ENOSYS;
#endif
}

int file_cachestat(int fd, uint64_t offset, uint64_t length, struct cache_counts *out)
{
#if defined(__linux__)
    enum { CACHESTAT = 451 }; /* the number on every architecture; Linux 6.5 */
    struct {
        uint64_t offset, length;
    } range = {offset, length};
    if (!syscall(CACHESTAT, fd, &range, out, 0))
        return 0;
    return call_is_refused(CALL_CACHESTAT, errno) ? ENOSYS : errno;
#else
    (void)fd, (void)offset, (void)length, (void)out;
    return ENOSYS;
#endif
}
