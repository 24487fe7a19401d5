/* inline_way.c: see inline_way.h. */
#include "inline_way.h"

#include "accounting.h"

#include "../sys/clock.h"
#include "../sys/thread_waits.h"

/* A pwrite(2) that took this long is slow, not counting a nanosecond for each byte. */
#define SLOW_PWRITE_NS INT64_C(250000)
/* After a slow one this many more are watched: a second slow one that slept, or spun for a lock,
 * tells that they wait. To watch takes 0.9 us, too much for each. */
#define SUSPECTED_PWRITES 8
/* A pwrite(2) that took this long is long; and how long the next ones are watched after it. A
 * second long one that slept tells that they wait, too. */
#define LONG_PWRITE_NS INT64_C(1000000)
#define WATCHED_NS INT64_C(2000000000)
/* For this long stores then go to a worker. They may wait for the inode's lock, which another
 * process holds, for a page that the kernel is writing, or at its limit for dirty pages: nothing
 * tells when that ends. */
#define BLOCKED_NS INT64_C(1000000000)

/* Whether a flush of ours is writing a range, or a folio of it for which a store would wait. */
static bool is_in_writeback(const Mapping *self, int64_t offset, int64_t end)
{
    int64_t unit = self->stable_pages ? FOLIO_BYTES : 1;
    int64_t start = self->writeback_start / unit * unit;
    int64_t stop = (self->writeback_end + unit - 1) / unit * unit;
    return runs_overlap(offset, end, start, stop);
}

enum inline_way inline_way_of(Mapping *self, int64_t offset, int64_t length, int64_t now)
{
    size_t first, end;
    int64_t stop = offset + length;
    if (is_in_writeback(self, offset, stop) ||
        runs_overlap(offset, stop, self->queued_start, self->queued_end)) /* I9 */
        return WAY_WORKER;
    pages_of(offset, length, &first, &end);
    account_refresh(self, now);
    if (pages_are(self, first, end, PRESENCE_READY)) /* their folios are dirty already */
        return self->private_copy || self->in_memory ? WAY_WITH_GIL : WAY_MAPPING;
    bool by_descriptor = self->local && !self->private_copy && now >= self->blocked_until;
    if (self->local && !self->private_copy && !self->in_memory && flush_is_near(self))
        return by_descriptor ? WAY_DESCRIPTOR : WAY_WORKER;
    if (region_is_resident(self->region, (size_t)offset, (size_t)length))
        return WAY_MAPPING;
    return by_descriptor ? WAY_DESCRIPTOR : WAY_WORKER;
}

/* Without the GIL, from here on to pwrite_watch_end. */

bool pwrite_is_inline(const struct pin *pin, int64_t offset, int64_t end, bool *cached)
{
    int64_t start = (int64_t)page_down((size_t)offset);
    *cached = *cached ||
              region_is_resident(pin->region, (size_t)offset, (size_t)(end - offset));
    bool solid, one = page_up(end) - start == (int64_t)page_size();
    if (*cached)
        return one || file_has_blocks(pin->fd, start, end);
    return file_is_hole(pin->fd, start, end) &&
           (one || (file_reaches(pin->fd, end, &solid) && solid)); /* its blocks are reserved */
}

void pwrite_watch_begin(struct pwrite_watch *watch, int64_t now)
{
    watch->looks = watch->suspected || watch->watched;
    if (watch->looks) {
        watch->waits = thread_waits();
        watch->ran = thread_clock();
    }
    watch->begun = now;
}

void pwrite_watch_end(struct pwrite_watch *watch, size_t bytes)
{
    int64_t took = monotonic_clock() - watch->begun - (int64_t)bytes;
    bool slow = took >= SLOW_PWRITE_NS, is_long = took >= LONG_PWRITE_NS, slept, spun;
    if (slow && watch->looks) {
        slept = thread_waits() != watch->waits;
        spun = thread_clock() - watch->ran >= took / 2; /* or the host took the processor */
        watch->waited = watch->waited || (watch->suspected ? slept || spun : slept && is_long);
        slow = slept || spun; /* else the thread lost the processor */
    }
    watch->was_long = watch->was_long || (slow && is_long);
    watch->suspected = slow ? SUSPECTED_PWRITES : watch->suspected - (watch->suspected > 0);
}

struct pwrite_watch pwrite_watch(const Mapping *self, int64_t now)
{
    return (struct pwrite_watch){.watched = now < self->watched_until,
                                 .suspected = self->suspected_pwrites};
}

void pwrite_watch_note(Mapping *self, const struct pwrite_watch *watch)
{
    self->suspected_pwrites = watch->suspected;
    if (watch->was_long)
        self->watched_until = monotonic_clock() + WATCHED_NS;
    if (watch->waited)
        self->blocked_until = monotonic_clock() + BLOCKED_NS;
}
