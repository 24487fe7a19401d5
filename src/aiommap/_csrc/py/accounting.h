/* accounting.h: what was stored, what is dirty, and what a flush is writing. Only accounting.c
 * writes that.
 *
 * Every page range is clipped to the pages that the file has (mapping.5). All functions need the
 * GIL. Those that return bool return false when out of memory, without an exception.
 */
#ifndef AIOMMAP_PY_ACCOUNTING_H
#define AIOMMAP_PY_ACCOUNTING_H

#include "mapping.h"

/* How long a page that was stored to is trusted to be still in memory. */
#define READY_NS INT64_C(1000000000)

/* What is known of pages that were just used. */
enum presence {
    PRESENCE_UNKNOWN,
    PRESENCE_CACHED, /* they are in memory */
    PRESENCE_READY,  /* and a store through the mapping does not enter the kernel */
};

/* Mark pages as present; mark pages as stored to at a time. */
bool account_present(Mapping *self, size_t first, size_t end, enum presence presence);
bool account_dirty(Mapping *self, size_t first, size_t end, int64_t now);
/* Account for `stored` bytes. The pages behind a fault are not dirty, so `stored` ends before it. */
bool account_store(Mapping *self, int64_t offset, size_t stored, enum presence presence,
                   int64_t now);
/* The same for bytes whose pages are not dirty, or known to be dirty already. */
void account_bytes(Mapping *self, int64_t offset, size_t stored);
/* Give a write its number. */
static inline uint64_t account_write(Mapping *self) { return ++self->sequence; }

/* Forget what lies beyond a new size. */
void account_size(Mapping *self);
/* Have room for this many pages; keeps what is marked. */
bool account_reserve(Mapping *self, size_t pages);
void account_free(Mapping *self);

/* Move pages [first, end) from the dirty ones to those that a flush is writing; and end that
 * writeback. */
void account_begin_writeback(Mapping *self, size_t first, size_t end);
void account_end_writeback(Mapping *self);

/* Fewer writes than these without a flush are no sign that nobody flushes. */
#define UNFLUSHED_WRITES UINT64_C(4096)

/* Whether the next flush is near, going by the policy and the writes that flushes had lately. A
 * store through the mapping then makes that flush expensive, as it dirties whole folios. */
static inline bool flush_is_near(const Mapping *self)
{
    uint64_t most = 2 * self->epoch_writes > UNFLUSHED_WRITES ? 2 * self->epoch_writes
                                                              : UNFLUSHED_WRITES;
    return self->flush_expected || self->sequence - self->flush_sequence < most;
}

/* Take note that mlock(2) keeps pages in memory, or that it does not. Without memory for the note,
 * they are read as other pages are. */
void account_locked(Mapping *self, size_t first, size_t end, bool locked);

static inline bool pages_are_locked(const Mapping *self, size_t first, size_t end)
{
    return self->locked.members && !self->remapping && pages_has_all(&self->locked, first, end);
}

/* Empty `ready` and `cached`. */
void account_expire_present(Mapping *self, int64_t now);

/* Forget what was seen too long ago. For callers to do before the questions that follow. */
static inline void account_refresh(Mapping *self, int64_t now)
{
    if (now - self->ready_since > READY_NS)
        account_expire_present(self, now);
}

/* Whether pages [first, end), or one page, were used within READY_NS as the presence says. */
static inline bool pages_are(const Mapping *self, size_t first, size_t end, enum presence presence)
{
    return pages_has_all(&self->ready, first, end) ||
           (presence == PRESENCE_CACHED && pages_has_all(&self->cached, first, end));
}

static inline bool page_is(const Mapping *self, size_t page, enum presence presence)
{
    return pages_has(&self->ready, page) ||
           (presence == PRESENCE_CACHED && pages_has(&self->cached, page));
}

#endif
