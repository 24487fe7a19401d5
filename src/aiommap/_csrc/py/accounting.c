#include "accounting.h"

bool account_present(Mapping *self, size_t first, size_t end, enum presence presence)
{
    if (presence == PRESENCE_UNKNOWN)
        return true;
    self->dirty_folios = self->dirty_folios || presence == PRESENCE_READY;
    struct pages *pages = presence == PRESENCE_READY ? &self->ready : &self->cached;
    return pages_insert(pages, first, end < self->pages ? end : self->pages);
}

bool account_dirty(Mapping *self, size_t first, size_t end, int64_t now)
{
    if (end > self->pages)
        end = self->pages;
    if (!self->dirty.members && first < end)
        self->dirty_since = now;
    return pages_insert(&self->dirty, first, end);
}

void account_bytes(Mapping *self, int64_t offset, size_t stored)
{
    int64_t end = offset + (int64_t)stored;
    self->written_bytes += stored;
    if (end > self->size) /* cut off meanwhile */
        end = self->size;
    if (stored && end > self->min_kept_length)
        self->min_kept_length = end;
}

bool account_store(Mapping *self, int64_t offset, size_t stored, enum presence presence,
                   int64_t now)
{
    size_t first, end;
    if (!pages_of(offset, (int64_t)stored, &first, &end))
        return true;
    if (!account_present(self, first, end, presence))
        return false;
    account_bytes(self, offset, stored);
    return account_dirty(self, first, end, now);
}

static void note_clean(Mapping *self)
{
    if (self->dirty.members)
        return;
    self->dirty_since = 0;
    self->dirty_folios = false;
}

void account_size(Mapping *self)
{
    pages_remove(&self->dirty, self->pages, self->dirty.count);
    pages_remove(&self->ready, self->pages, self->ready.count);
    pages_remove(&self->cached, self->pages, self->cached.count);
    note_clean(self);
}

bool account_reserve(Mapping *self, size_t pages)
{
    return pages_reserve(&self->dirty, pages) && pages_reserve(&self->ready, pages) &&
           pages_reserve(&self->cached, pages) && pages_reserve(&self->locked, pages);
}

void account_free(Mapping *self)
{
    pages_free(&self->dirty);
    pages_free(&self->ready);
    pages_free(&self->cached);
    pages_free(&self->locked);
}

void account_locked(Mapping *self, size_t first, size_t end, bool locked)
{
    if (locked)
        pages_insert(&self->locked, first, end);
    else
        pages_remove(&self->locked, first, end);
}

/* A flush begins: the number of writes since the last one tells how many the next one may have. At
 * least half of the number before is kept, so that one small flush in between does not decide. */
static void begin_epoch(Mapping *self)
{
    uint64_t writes = self->sequence - self->flush_sequence, before = self->epoch_writes / 2;
    if (!writes) /* another range of the same flush */
        return;
    self->epoch_writes = writes > before ? writes : before;
    self->flush_sequence = self->sequence;
}

void account_begin_writeback(Mapping *self, size_t first, size_t end)
{
    begin_epoch(self);
    self->writeback_pages += end - first - pages_missing(&self->dirty, first, end);
    if (!self->writeback_since)
        self->writeback_since = self->dirty_since;
    pages_remove(&self->dirty, first, end);
    pages_remove(&self->ready, first, end); /* write-back makes the pages read-only again */
    note_clean(self);
    int64_t start = (int64_t)(first << page_shift), stop = (int64_t)(end << page_shift);
    bool idle = self->writeback_start >= self->writeback_end;
    self->writeback_start = idle || start < self->writeback_start ? start : self->writeback_start;
    self->writeback_end = idle || stop > self->writeback_end ? stop : self->writeback_end;
}

void account_end_writeback(Mapping *self)
{
    self->writeback_start = self->writeback_end = 0;
    self->writeback_pages = 0;
    self->writeback_since = 0;
}

void account_expire_present(Mapping *self, int64_t now)
{
    pages_clear(&self->ready);
    pages_clear(&self->cached);
    self->ready_since = now;
}
