/* accounting.h: what was stored, what is dirty, and what a flush is writing; the one writer of it.
 *
 * Every page range is clipped to the pages that the file has (mapping.5). All functions need the
 * GIL. Those that return bool return false when out of memory, without an exception.
 */
#ifndef AIOMMAP_PY_ACCOUNTING_H
#define AIOMMAP_PY_ACCOUNTING_H

#include "mapping.h"

/* How long a page that was stored to is trusted to be still in memory. */
#define READY_NS INT64_C(1000000000)

/* Mark pages as in memory and writable; and as stored to at a time. */
bool account_ready(Mapping *self, size_t first, size_t end);
bool account_dirty(Mapping *self, size_t first, size_t end, int64_t now);
/* Account for `stored` bytes. `ready` says that their pages can be stored to without a fault from
 * now on. The pages behind a fault are not dirty, so `stored` ends before it. */
bool account_store(Mapping *self, int64_t offset, size_t stored, bool ready, int64_t now);
/* The same for bytes whose pages are not dirty, or known to be dirty already. */
void account_bytes(Mapping *self, int64_t offset, size_t stored);
/* Give a write its number. */
static inline uint64_t account_write(Mapping *self) { return ++self->sequence; }

/* Forget what lies beyond a new size. */
void account_size(Mapping *self);
/* Have room for this many pages; keeps what is marked. */
bool account_reserve(Mapping *self, size_t pages);
void account_free(Mapping *self);

/* Move pages [first, end) from the dirty ones to those that a flush is writing; and end that. */
void account_begin_writeback(Mapping *self, size_t first, size_t end);
void account_end_writeback(Mapping *self);

/* Empty `ready` if that was not done within READY_NS. */
void account_expire_ready(Mapping *self, int64_t now);

/* Whether pages [first, end) were touched within READY_NS; and whether one page was. */
static inline bool pages_are_ready(Mapping *self, size_t first, size_t end, int64_t now)
{
    if (now - self->ready_since > READY_NS)
        account_expire_ready(self, now);
    return pages_has_all(&self->ready, first, end);
}

static inline bool page_is_ready(Mapping *self, size_t page, int64_t now)
{
    if (now - self->ready_since > READY_NS)
        account_expire_ready(self, now);
    return pages_has(&self->ready, page);
}

#endif
