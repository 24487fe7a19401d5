/* inline_way.c: see inline_way.h. */
#include "inline_way.h"

#include "accounting.h"

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
    if (pages_are(self, first, end, PRESENCE_READY)) { /* their folios are dirty already */
        if (self->private_copy || self->in_memory)
            return WAY_WITH_GIL;
        /* Beside a process that writes all the time the kernel may have written them out meanwhile:
         * then a store through the mapping takes a fault, which may wait. */
        return now < self->held_until ? WAY_WORKER : WAY_MAPPING;
    }
    bool by_descriptor = self->local && !self->private_copy && now >= self->blocked_until;
    if (self->local && !self->private_copy && !self->in_memory && flush_is_near(self))
        return by_descriptor ? WAY_DESCRIPTOR : WAY_WORKER;
    if (region_is_resident(self->region, (size_t)offset, (size_t)length))
        return WAY_MAPPING;
    return by_descriptor ? WAY_DESCRIPTOR : WAY_WORKER;
}

/* Without the GIL. */

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
