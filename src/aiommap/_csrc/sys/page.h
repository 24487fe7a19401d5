/* page.h: the units of memory and of work, and all rounding to them. Knows nothing of Python. */
#ifndef AIOMMAP_PAGE_H
#define AIOMMAP_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* No single system call or copy handles more than this, so that each can be interrupted. */
#define PIECE_BYTES ((size_t)4 << 20)

/* A page has 2 to the power of this many bytes. Constant: set when the library is loaded, so that
 * the signal handler finds it there. */
extern unsigned page_shift;

static inline size_t page_size(void) { return (size_t)1 << page_shift; }

static inline size_t page_down(size_t offset) { return offset >> page_shift << page_shift; }

/* The first place in some memory, which has room for a page more, that lies as far into a page as an
 * offset does. Reads of a file should go there: from Zen 3 on, `rep movsb`, by which the kernel and
 * memcpy copy, takes 20 times as long if the destination lies 1 to 31 bytes further into its page
 * than the source. (What aligned_alloc gives is new to the process each time, and faults again.) */
static inline char *place_as_in_file(char *memory, int64_t offset)
{
    return memory + (((size_t)offset - (uintptr_t)memory) & (page_size() - 1));
}

/* The number of whole pages that bytes [0, end) take. */
static inline size_t pages_for(int64_t end)
{
    return ((size_t)end + page_size() - 1) >> page_shift;
}

static inline int64_t page_up(int64_t offset) { return (int64_t)(pages_for(offset) << page_shift); }

/* The pages [*first, *end) that a range touches; false if the range is empty. */
static inline bool pages_of(int64_t offset, int64_t length, size_t *first, size_t *end)
{
    *first = (size_t)offset >> page_shift;
    *end = pages_for(offset + length);
    return length > 0;
}

#endif
