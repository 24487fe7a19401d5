#include "growth.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <sys/vfs.h>
#endif
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "file_io.h"
#include "full_disk.h"
#include "page.h"
#include "retry.h"

/* Flags of fallocate(2) and pwritev2(2) on Linux, as numbers: headers may be older than the
 * kernel. */
enum { KEEP_SIZE = 1, APPEND = 16 };
#ifdef __linux__
enum { CAN_APPEND = true };
#else
enum { CAN_APPEND = false };
#endif

/* SAFETY: the handler and other threads read these fields at any moment. A reader that sees a new
 * `end` has to see what was done to the file before it: hence acquire and release. */
#define LOAD(field) __atomic_load_n(&(field), __ATOMIC_ACQUIRE)
#define STORE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELEASE)

/* A forked child takes a lock over that a thread of its parent held: nobody holds the child's
 * copy. */
static bool try_lock(struct growth *growth)
{
    int us = getpid(), holder = 0;
    return __atomic_compare_exchange_n(&growth->busy, &holder, us, false, __ATOMIC_ACQUIRE,
                                       __ATOMIC_RELAXED) ||
           (holder != us &&
            __atomic_compare_exchange_n(&growth->busy, &holder, us, false, __ATOMIC_ACQUIRE,
                                        __ATOMIC_RELAXED));
}

static void lock(struct growth *growth)
{
    const struct timespec moment = {.tv_nsec = 50000}; /* the holder may wait for a disk */
    for (int tries = 0; !try_lock(growth); tries++)
        if (tries < 100)
            sched_yield();
        else
            nanosleep(&moment, NULL);
}

static void unlock(struct growth *growth) { STORE(growth->busy, 0); }

/* Under the lock. Generations are unique in the process: where a file is mapped at an address that
 * another file had, no page of it passes for one that was tried already. */
static void set_end(struct growth *growth, int64_t end)
{
    static uint64_t latest;
    growth->generation = __atomic_add_fetch(&latest, 1, __ATOMIC_RELAXED);
    STORE(growth->end, end);
}

static int64_t length_of(int fd)
{
    struct stat found;
    return fstat(fd, &found) ? -1 : (int64_t)found.st_size;
}

/* Set the length and look at it: some FUSE drivers only say that they have set it. Others may
 * change the length between the two calls, so this tries again; they do not come in between each
 * time. If the file is longer than asked, and was not before, somebody has appended to it, and that
 * is fine. */
static int set_length(int fd, int64_t length)
{
    for (int attempt = 0; attempt < 4; attempt++) {
        int failed;
        int64_t before = length_of(fd);
        UNINTERRUPTED(failed, ftruncate(fd, (off_t)length));
        if (failed)
            return failed;
        int64_t after = length_of(fd);
        if (after == length || (after > length && after != before))
            return 0;
    }
    errno = EPROTO;
    return -1;
}

static int allocate(int fd, int mode, int64_t from, int64_t end)
{
#ifdef __linux__
    int failed;
    UNINTERRUPTED(failed, fallocate(fd, mode, (off_t)from, (off_t)(end - from)));
    return failed ? errno : 0;
#else
    (void)fd, (void)mode, (void)from, (void)end;
    return ENOSYS;
#endif
}

/* The system call itself: musl has a function for it only since 1.2.5. */
static ssize_t append(int fd, const struct iovec *pieces, int count)
{
#ifdef __linux__
    return syscall(SYS_pwritev2, fd, pieces, count, 0L, 0L, APPEND);
#else
    (void)fd, (void)pieces, (void)count;
    errno = ENOSYS;
    return -1;
#endif
}

/* Whether the error says that the call is missing, so that a plainer call is worth a try. File
 * systems and kernels may lack a call, and sandboxes refuse it with EPERM. Where EPERM is about the
 * file, the plainer call fails with it, too. */
static bool is_missing(int error)
{
    return error == EOPNOTSUPP || error == ENOSYS || error == EPERM || error == EINVAL;
}

/* By how much a file of this length grows: as much again as it has, but at least GROWTH_MIN_BYTES
 * and at most `most`. */
static int64_t again(int64_t end, int64_t most)
{
    return end < GROWTH_MIN_BYTES ? GROWTH_MIN_BYTES : end > most ? most : end;
}

static int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* How long the process may make the file. A write that meets a limit within a page would end the
 * file there (growth.1). */
static int64_t allowed(int64_t end)
{
    struct rlimit most;
    if (getrlimit(RLIMIT_FSIZE, &most) || most.rlim_cur >= (rlim_t)end)
        return end;
    return (int64_t)most.rlim_cur / (int64_t)page_size() * (int64_t)page_size();
}

/* Under the lock: take over what a failed call got done. A store may have gone there already, so
 * nothing is cut off. */
static int take_over(struct growth *growth, int64_t offset, int error)
{
    int64_t length = length_of(growth->fd), end = page_up(length);
    if (length <= LOAD(growth->end) || (end > length && set_length(growth->fd, end)))
        return error;
    set_end(growth, end);
    STORE(growth->grown, end);
    return offset < end ? 0 : error;
}

/* Make the file longer without writing. If somebody else has made it even longer meanwhile,
 * fallocate(2) leaves it so. Where a file system lacks that call, ftruncate(2) may cut it. */
static int extend(const struct growth *growth, int64_t end, int64_t target)
{
    int error = allocate(growth->fd, 0, growth->sparse ? target - 1 : end, target);
    if (!is_missing(error) || length_of(growth->fd) >= target)
        return is_missing(error) ? 0 : error;
    return set_length(growth->fd, target) ? errno : 0;
}

/* Reserve blocks beyond the end, for several windows at once. On a file system that cannot, writing
 * the zeros finds the room. */
static int reserve(struct growth *growth, int64_t end, int64_t target, int64_t limit)
{
    int64_t from = max_of(growth->reserved, end);
    int64_t far = max_of(target, min_of(limit, end + again(end, GROWTH_MAX_BYTES)));
    if (target <= growth->reserved)
        return 0;
    int error = allocate(growth->fd, KEEP_SIZE, from, far);
    if (is_full(error) && far > target)
        error = allocate(growth->fd, KEEP_SIZE, from, far = target);
    if (!error)
        growth->reserved = far;
    return is_missing(error) ? 0 : error;
}

/* Append zeros, at most a window, or up to a page boundary where others have ended the file within
 * a page (growth.1). They go to the end of the file, wherever it is by then. So they overwrite
 * neither what another process has put there since, nor what another thread stores: it can store
 * there only after us. */
static int append_zeros(int fd, int64_t *end, int64_t target)
{
    static const char zeros[1 << 16]; /* SAFETY: constant, so two handlers can use it at once */
    enum { PIECES = GROWTH_WINDOW_BYTES / sizeof zeros };
    for (int64_t to = target; *end < to; to = max_of(target, page_up(*end))) {
        struct iovec pieces[PIECES];
        int count = 0;
        for (int64_t left = to - *end; left > 0 && count < PIECES; left -= sizeof zeros)
            pieces[count++] = (struct iovec){
                (void *)zeros, (size_t)min_of(left, (int64_t)sizeof zeros)};
        ssize_t put = append(fd, pieces, count);
        if (put == 0)
            return EIO;
        if (put < 0 && errno != EINTR)
            return errno;
        *end = length_of(fd);
    }
    return 0;
}

/* Under the lock: make the file so long that it has the page at `offset`. A full disk may still
 * have room for that page, if not for more. */
static int grow(struct growth *growth, int64_t offset, int64_t limit)
{
    int64_t end = LOAD(growth->end), least = page_up(offset + 1);
    limit = allowed(limit);
    if (least > limit)
        return take_over(growth, offset, EFBIG);
    int64_t window = again(end, growth->sparse ? GROWTH_MAX_BYTES : GROWTH_WINDOW_BYTES);
    int64_t target = max_of(least, min_of(limit, end + window));
    bool written = CAN_APPEND && !growth->sparse && least - end <= window; /* not far away */
    int error = written ? reserve(growth, end, target, limit) : extend(growth, end, target);
    if (is_full(error) && target > least) {
        target = least;
        error = written ? reserve(growth, end, target, limit) : extend(growth, end, target);
    }
    if (written && !error) {
        error = append_zeros(growth->fd, &end, target);
        if (is_missing(error)) /* every kernel has the call, but not every sandbox and emulator */
            error = extend(growth, end, target);
    }
    if (error)
        return take_over(growth, offset, error);
    end = max_of(end, target);
    set_end(growth, end);
    STORE(growth->grown, end);
    return 0;
}

/* Whether the file system has blocks left; one like btrfs takes new blocks even where the file has
 * some. */
static bool has_room(int fd)
{
#ifdef __linux__
    struct statfs found;
    return fstatfs(fd, &found) || found.f_bavail >= (uint64_t)(FOLIO_BYTES / found.f_bsize);
#else
    (void)fd;
    return true;
#endif
}

/* Under the lock: allocate as much as the folios of a range can want at a time or, on a full disk,
 * the range alone. */
static int fill(int fd, int64_t offset, int64_t length, int *again)
{
    int64_t size = length_of(fd), start = offset / FOLIO_BYTES * FOLIO_BYTES;
    int64_t end = (offset + length + FOLIO_BYTES - 1) / FOLIO_BYTES * FOLIO_BYTES;
    if (size <= offset)
        return EFAULT;
    int error = allocate(fd, KEEP_SIZE, start, min_of(end, page_up(size)));
    if (error == EBADF) /* open for reading: where the file has a hole, it can only lack room */
        return lseek(fd, (off_t)offset, SEEK_HOLE) == offset ? ENOSPC : EFAULT;
    *again = is_full(error) ? error : has_room(fd) ? EFAULT : ENOSPC;
    if (!is_full(error))
        return error ? EFAULT : 0;
    return allocate(fd, KEEP_SIZE, offset, offset + length);
}

int growth_fill(struct growth *growth, int64_t offset, int64_t length, int *again)
{
    *again = EFAULT;
    if (!try_lock(growth)) {
        sched_yield();
        return EAGAIN;
    }
    int error = growth->fd < 0 ? EFAULT : fill(growth->fd, offset, length, again);
    unlock(growth);
    return error;
}

/* SAFETY: runs in the signal handler. It makes only system calls that are async-signal-safe, or
 * thin wrappers of them, on a descriptor that `busy` keeps open; it allocates nothing, and never
 * waits (growth.2). */
enum growth_outcome growth_reach(struct growth *growth, int64_t offset, int64_t limit, int *error,
                                 uint64_t *generation)
{
    enum growth_outcome outcome = GROWTH_LOST;
    *error = 0;
    *generation = 0;
    if (!try_lock(growth)) {
        sched_yield();
        return GROWTH_AGAIN;
    }
    if (offset < LOAD(growth->end)) /* growth.3, unless another thread has made it longer just now */
        outcome = growth->fd < 0 || length_of(growth->fd) > offset ? GROWTH_THERE : GROWTH_LOST;
    else if (growth->fd < 0)
        outcome = GROWTH_BEYOND;
    else if (length_of(growth->fd) < LOAD(growth->end))
        outcome = GROWTH_LOST; /* zeros of ours would hide what others cut off */
    else if (!(*error = grow(growth, offset, limit)))
        outcome = GROWTH_AGAIN;
    *generation = growth->generation;
    unlock(growth);
    return outcome;
}

enum growth_outcome growth_leave(struct growth *growth, int64_t offset)
{
    if (!try_lock(growth)) {
        sched_yield();
        return GROWTH_AGAIN;
    }
    if (offset >= LOAD(growth->end))
        return GROWTH_BEYOND;
    unlock(growth);
    return GROWTH_LOST;
}

void growth_return(struct growth *growth) { unlock(growth); }

int growth_truncate(struct growth *growth, int fd, int64_t length, bool whole_pages)
{
    lock(growth);
    int64_t end = whole_pages ? page_up(length) : length;
    int error = set_length(fd, length) ? errno : 0;
    if (!error) {
        if (end > length && set_length(fd, end)) {
            error = errno; /* the file has its new length all the same */
            end = length;
        }
        set_end(growth, end);
        STORE(growth->grown, 0);
        growth->reserved = end;
    }
    unlock(growth);
    return error;
}

int growth_extend(struct growth *growth, int fd, int64_t end)
{
    lock(growth);
    int error = length_of(fd) < end && set_length(fd, end) ? errno : 0;
    if (!error && end > LOAD(growth->end))
        set_end(growth, end);
    unlock(growth);
    return error;
}

/* How many of `put` bytes belong to whole pieces. */
static size_t whole_of(const size_t *lengths, int count, size_t put)
{
    size_t whole = 0;
    for (int i = 0; i < count && whole + lengths[i] <= put; i++)
        whole += lengths[i];
    return whole;
}

/* Under the lock: write at `start`, and let the file end behind that, but no earlier than
 * before. */
static int append_at(struct growth *growth, int fd, struct iovec *pieces, int count, int64_t start,
                     bool whole_pages, size_t *put)
{
    static const char zeros[1 << 16]; /* no page is larger */
    size_t lengths[APPEND_PIECES], wanted = 0;
    int error, many = count;
    for (int i = 0; i < count; wanted += lengths[i++])
        lengths[i] = pieces[i].iov_len;
    int64_t before = LOAD(growth->end), end = start + (int64_t)wanted;
    int64_t last = max_of(before, whole_pages ? page_up(end) : end);
    size_t pad = last > before ? (size_t)(last - end) : 0;
    if (pad)
        pieces[many++] = (struct iovec){(void *)zeros, pad};
    size_t done = file_write(fd, pieces, many, (off_t)start, &error);
    *put = done < wanted ? whole_of(lengths, count, done) : wanted;
    if (done < wanted + pad) { /* cut back, with zeros where it had padding */
        end = start + (int64_t)*put;
        last = max_of(before, whole_pages ? page_up(end) : end);
        if (!set_length(fd, end) && last > end)
            set_length(fd, last);
    }
    set_end(growth, last);
    return *put == wanted ? 0 : error ? error : EIO;
}

void growth_append(struct growth *growth, int fd, struct iovec *pieces, int count, int64_t size,
                   bool whole_pages, struct appended *out)
{
    struct file_stat found;
    *out = (struct appended){.start = size};
    lock(growth);
    out->start = max_of(size, LOAD(growth->grown));
    out->error = file_stat(fd, &found);
    if (!out->error && found.size != LOAD(growth->end))
        out->error = EAGAIN;
    if (!out->error)
        out->error =
            append_at(growth, fd, pieces, count, out->start, whole_pages, &out->put);
    unlock(growth);
}

void growth_follow(struct growth *growth, int64_t length)
{
    lock(growth);
    set_end(growth, length);
    STORE(growth->grown, 0);
    growth->reserved = length;
    unlock(growth);
}

void growth_wait(struct growth *growth)
{
    lock(growth);
    unlock(growth);
}

void growth_stop(struct growth *growth)
{
    lock(growth);
    growth->fd = -1;
    unlock(growth);
}
