#include "growth.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOAD(field) __atomic_load_n(&(field), __ATOMIC_ACQUIRE)
#define STORE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELEASE)

/* A forked child takes a lock over that a thread of its parent had: this copy is nobody's. */
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
    while (!try_lock(growth))
        sched_yield();
}

static void unlock(struct growth *growth) { STORE(growth->busy, 0); }

static int64_t page_bytes(void) { return (int64_t)sysconf(_SC_PAGESIZE); }

static int64_t page_up(int64_t offset)
{
    int64_t page = page_bytes();
    return (offset + page - 1) / page * page;
}

static int64_t length_of(int fd)
{
    struct stat found;
    return fstat(fd, &found) ? -1 : (int64_t)found.st_size;
}

/* Neither call makes a file shorter that somebody else has made longer meanwhile. A file system
 * without fallocate(2) has only ftruncate(2), which would; and then no blocks are reserved. */
static int extend(const struct growth *growth, int64_t end, int64_t target)
{
    int64_t from = growth->sparse ? target - 1 : end;
    int failed;
    do
        failed = fallocate(growth->fd, 0, (off_t)from, (off_t)(target - from));
    while (failed && errno == EINTR);
    if (!failed)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS) {
        int error = errno;
        if (length_of(growth->fd) > end) /* some file systems keep what they got done */
            failed = ftruncate(growth->fd, (off_t)end);
        return error;
    }
    if (length_of(growth->fd) >= target)
        return 0;
    return ftruncate(growth->fd, (off_t)target) ? errno : 0;
}

static int64_t step_beyond(int64_t end)
{
    return end < GROWTH_LEAST_BYTES ? GROWTH_LEAST_BYTES
           : end > GROWTH_MOST_BYTES ? GROWTH_MOST_BYTES
                                     : end;
}

/* Under the lock. A full disk may still have room for the page itself. */
static int grow(struct growth *growth, int64_t offset, int64_t limit)
{
    int64_t end = LOAD(growth->end), least = page_up(offset + 1);
    int64_t target = end + step_beyond(end);
    target = target < least ? least : target > limit ? limit : target;
    int error = extend(growth, end, target);
    if ((error == ENOSPC || error == EDQUOT || error == EFBIG) && target > least)
        error = extend(growth, end, target = least);
    if (error)
        return error;
    STORE(growth->end, target);
    STORE(growth->grown, target);
    return 0;
}

enum growth_outcome growth_reach(struct growth *growth, int64_t offset, int64_t limit, int *error)
{
    enum growth_outcome outcome = GROWTH_LOST;
    *error = 0;
    if (!try_lock(growth)) {
        sched_yield();
        return GROWTH_AGAIN;
    }
    if (offset < LOAD(growth->end)) /* X3, unless another thread has made it longer just now */
        outcome = growth->fd < 0 || length_of(growth->fd) > offset ? GROWTH_THERE : GROWTH_LOST;
    else if (growth->fd < 0)
        outcome = GROWTH_BEYOND;
    else if (!(*error = grow(growth, offset, limit)))
        outcome = GROWTH_AGAIN;
    unlock(growth);
    return outcome;
}

int growth_truncate(struct growth *growth, int fd, int64_t length, bool whole_pages)
{
    lock(growth);
    int64_t end = whole_pages ? page_up(length) : length;
    int error = ftruncate(fd, (off_t)length) ? errno : 0;
    if (!error && end > length)
        error = ftruncate(fd, (off_t)end) ? errno : 0;
    if (!error) {
        STORE(growth->end, end);
        STORE(growth->grown, 0);
    }
    unlock(growth);
    return error;
}

int growth_extend(struct growth *growth, int fd, int64_t end)
{
    lock(growth);
    int error = length_of(fd) < end && ftruncate(fd, (off_t)end) ? errno : 0;
    if (!error && end > LOAD(growth->end))
        STORE(growth->end, end);
    unlock(growth);
    return error;
}

void growth_stop(struct growth *growth)
{
    lock(growth);
    growth->fd = -1;
    unlock(growth);
}
