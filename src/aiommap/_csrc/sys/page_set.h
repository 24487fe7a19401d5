/* page_set.h: a set of pages as a bitmap with bounds on what was ever set.
 *
 * Not thread-safe: the owner's lock (the GIL, for a Mapping) covers every call. Page numbers count
 * from the start of the file. The first insertion allocates the bitmap, and the kernel fills its
 * pages with zeros when they are touched. So a set over a huge reserved range costs only what is
 * touched.
 */
#ifndef AIOMMAP_PAGES_H
#define AIOMMAP_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pages { /* the owner's lock: the GIL, for a Mapping; written by page_set.c */
    uint64_t *words; /* NULL until the first insertion */
    size_t count;    /* pages that the bitmap has room for */
    size_t low, high; /* every member lies in [low, high) */
    size_t members;   /* how many there are */
};

/* Make room for pages [0, count); keeps the members. False when out of memory. */
bool pages_reserve(struct pages *set, size_t count);
void pages_free(struct pages *set);
/* Remove all members; that takes time for the touched pages of the bitmap, not for its size. */
void pages_clear(struct pages *set);

/* All ranges are half-open and must lie within the reserved room. */
bool pages_insert(struct pages *set, size_t first, size_t end); /* false when out of memory */
void pages_remove(struct pages *set, size_t first, size_t end);
static inline bool pages_has(const struct pages *set, size_t page)
{
    return set->words && page < set->count && (set->words[page / 64] >> page % 64 & 1);
}
bool pages_has_all(const struct pages *set, size_t first, size_t end);
bool pages_has_any(const struct pages *set, size_t first, size_t end);
size_t pages_missing(const struct pages *set, size_t first, size_t end); /* not members */

/* Find the first run of members in [from, end); false when there is none. */
bool pages_next_run(const struct pages *set, size_t from, size_t end, size_t *first, size_t *stop);

#endif
