#include "region.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include "atomic_word.h"
#include "clock.h"
#include "guard.h"
#include "page.h"
#include "refused.h"
#include "retry.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

int region_map(struct region **out, int fd, size_t length, const struct region_options *options)
{
    struct region *region = calloc(1, sizeof *region);
    if (!region)
        return ENOMEM;
    int protection = PROT_READ | (options->writable ? PROT_WRITE : 0);
    int flags = (options->private_copy ? MAP_PRIVATE : MAP_SHARED) | MAP_NORESERVE;
    void *base = mmap(NULL, length, protection, flags, fd, 0);
    if (base == MAP_FAILED) {
        int error = errno;
        free(region);
        return error;
    }
#ifdef MADV_HUGEPAGE
    if (options->huge)
        madvise(base, length, MADV_HUGEPAGE); /* best effort, as documented */
#endif
    *region = (struct region){.base = base,
                              .length = length,
                              .writable = options->writable,
                              .damage = options->damage,
                              .growth = options->growth,
                              .references = 1};
    region->entry = fault_table_add(&(struct fault_mapping){(uintptr_t)base, length, protection,
                                            options->damage, options->growth, options->file});
    if (!region->entry) {
        munmap(base, length);
        free(region);
        return ENOMEM;
    }
    *out = region;
    return 0;
}

void region_unmap(struct region *region)
{
    fault_table_remove(region->entry); /* first: fault_table.4 */
    munmap(region->base, region->length);
    free(region);
}

/* SAFETY, from here on: offset and length were checked against the size (I3), or are whole pages of
 * the region. Both lie within it, and the base is page-aligned, so rounding down stays inside. */

int region_fence(struct region *region, size_t offset)
{
    if (offset >= region->length)
        return 0;
    /* SAFETY: offset is page-aligned and below length, so the fixed range is our own. */
    void *at = mmap(region->base + offset, region->length - offset,
                    PROT_READ | (region->writable ? PROT_WRITE : 0),
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? errno : 0;
}

int region_unfence(struct region *region, int fd, size_t offset, size_t end)
{
    if (end > region->length)
        end = region->length;
    if (offset >= end)
        return 0;
    /* SAFETY: as in region_fence; only shared mappings are ever fenced. */
    void *at = mmap(region->base + offset, end - offset,
                    PROT_READ | (region->writable ? PROT_WRITE : 0),
                    MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, (off_t)offset);
    return at == MAP_FAILED ? errno : 0;
}

int region_mincore(const struct region *region, size_t offset, size_t length,
                   unsigned char *flags)
{
    if (call_was_refused(CALL_MINCORE))
        return ENOSYS;
    if (!mincore(region->base + offset, length, (void *)flags))
        return 0;
    return call_is_refused(CALL_MINCORE, errno) ? ENOSYS : errno;
}

bool region_is_resident(const struct region *region, size_t offset, size_t length)
{
    unsigned char flags[256];
    size_t page = page_size(), at = page_down(offset), end = offset + length;
    while (at < end) {
        size_t span = end - at < sizeof flags * page ? end - at : sizeof flags * page;
        if (region_mincore(region, at, span, flags))
            return false;
        for (size_t i = 0; i < (span + page - 1) / page; i++)
            if (!(flags[i] & 1))
                return false;
        at += span;
    }
    return true;
}

/* Touch every page of [start, end): load a byte, or store the bytes that it has already. 0 or
 * EFAULT. */
static int touch(const struct region *region, size_t start, size_t end, bool write)
{
    char byte;
    int64_t now = monotonic_clock();
    for (size_t at = start; at < end; at += page_size()) {
        struct word_call call = {.at = region->base + at,
                                 .width = sizeof(uint32_t),
                                 .operation = WORD_OR,
                                 .order = ORDER_RELAXED};
        bool reached = write ? guard_word(&call, now)
                             : guard_copy(&byte, region->base + at, 1, NULL) == 1;
        if (!reached || is_damaged(region->damage))
            return EFAULT;
    }
    return 0;
}

ssize_t region_populate(const struct region *region, size_t offset, size_t length, bool write)
{
    size_t start = page_down(offset), end = offset + length;
    if (end - start > PIECE_BYTES)
        end = start + PIECE_BYTES;
    enum call call = write ? CALL_POPULATE_WRITE : CALL_POPULATE_READ;
    int error = ENOSYS;
#if defined(__linux__)
    /* Numbers, since Linux 5.14: headers may be older than the kernel. */
    const int advice = write ? 23 : 22;
    if (!call_was_refused(call))
        error = madvise(region->base + start, end - start, advice) ? errno : 0;
#endif
    if (error == EINVAL || call_was_refused(call) || call_is_refused(call, error))
        error = touch(region, start, end, write);
    return error ? -error : (ssize_t)(end - offset);
}

int region_advise(const struct region *region, size_t offset, size_t length, int advice)
{
    size_t start = page_down(offset);
    return madvise(region->base + start, offset + length - start, advice) ? errno : 0;
}

int region_lock(const struct region *region, size_t offset, size_t length, bool later)
{
    size_t start = page_down(offset);
    char *at = region->base + start;
    size_t span = offset + length - start;
#if defined(__linux__)
    /* Without MLOCK_ONFAULT all pages have to be present, as locked ones are read without any
     * check. */
    if (!call_was_refused(CALL_MLOCK2)) {
        int failed = mlock2(at, span, later ? MLOCK_ONFAULT : 0);
        if (!failed || !call_is_refused(CALL_MLOCK2, errno))
            return failed ? errno : 0;
    }
#endif
    (void)later;
    return mlock(at, span) ? errno : 0;
}

int region_unlock(const struct region *region, size_t offset, size_t length)
{
    size_t start = page_down(offset);
    char *at = region->base + start;
    size_t span = offset + length - start;
#if defined(__linux__)
    /* The system call itself: sanitizers replace munlock(3) by nothing, and the pages would stay
     * locked. */
    return syscall(SYS_munlock, at, span) ? errno : 0;
#else
    return munlock(at, span) ? errno : 0;
#endif
}

int region_sync(const struct region *region, size_t offset, size_t length)
{
    size_t start = page_down(offset);
    int failed;
    UNINTERRUPTED(failed, msync(region->base + start, offset + length - start, MS_SYNC));
    if (!failed)
        return 0;
    return call_is_refused(CALL_MSYNC, errno) ? ENOSYS : errno;
}

static size_t copy_pieces(char *to, const char *from, size_t length)
{
    size_t done = 0;
    while (done < length) {
        size_t piece = length - done < PIECE_BYTES ? length - done : PIECE_BYTES;
        size_t copied = guard_copy(to + done, from + done, piece, NULL);
        done += copied;
        if (copied < piece)
            break;
    }
    return done;
}

size_t region_copy_out(const struct region *region, size_t offset, char *to, size_t length)
{
    size_t copied = copy_pieces(to, region->base + offset, length);
    /* SAFETY: the handler notes the damage before it lays a page of zeros (guard.5), but arm64 may
     * load the note before it loads the zeros. An acquire fence keeps the loads in order. */
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return is_damaged(region->damage) ? 0 : copied;
}

size_t region_copy_in(const struct region *region, size_t offset, const char *from, size_t length)
{
    size_t copied = copy_pieces(region->base + offset, from, length);
    /* SAFETY: as above, but only a full fence keeps a load behind stores. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return is_damaged(region->damage) ? 0 : copied;
}
