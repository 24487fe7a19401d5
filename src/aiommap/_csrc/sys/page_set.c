#include "page_set.h"

#include <stdlib.h>
#include <string.h>

enum { BITS = 64 };

/* The bits of word `word` that stand for pages in [first, end). */
static uint64_t mask_of(size_t word, size_t first, size_t end)
{
    size_t start = word * BITS;
    uint64_t mask = ~UINT64_C(0);
    if (first > start)
        mask &= ~UINT64_C(0) << (first - start);
    if (end < start + BITS)
        mask &= ~(~UINT64_C(0) << (end - start));
    return mask;
}

static size_t popcount(uint64_t word) { return (size_t)__builtin_popcountll(word); }

static size_t words_for(size_t pages) { return (pages + BITS - 1) / BITS; }

bool pages_reserve(struct pages *set, size_t count)
{
    if (set->words && words_for(count) > words_for(set->count)) {
        uint64_t *wider = calloc(words_for(count), sizeof *wider);
        if (!wider)
            return false;
        memcpy(wider, set->words, words_for(set->count) * sizeof *wider);
        free(set->words);
        set->words = wider;
    }
    if (count > set->count)
        set->count = count;
    return true;
}

void pages_free(struct pages *set)
{
    free(set->words);
    *set = (struct pages){0};
}

void pages_clear(struct pages *set)
{
    size_t count = set->count;
    pages_free(set);
    set->count = count;
}

bool pages_insert(struct pages *set, size_t first, size_t end)
{
    if (first >= end)
        return true;
    if (!set->words) {
        set->words = calloc(words_for(set->count), sizeof *set->words);
        if (!set->words)
            return false;
    }
    bool empty = set->low >= set->high;
    set->low = empty || first < set->low ? first : set->low;
    set->high = empty || end > set->high ? end : set->high;
    for (size_t w = first / BITS; w < words_for(end); w++) {
        uint64_t mask = mask_of(w, first, end);
        set->members += popcount(mask & ~set->words[w]);
        set->words[w] |= mask;
    }
    return true;
}

void pages_remove(struct pages *set, size_t first, size_t end)
{
    size_t from = first > set->low ? first : set->low;
    size_t to = end < set->high ? end : set->high;
    if (!set->words || from >= to)
        return;
    for (size_t w = from / BITS; w < words_for(to); w++) {
        uint64_t mask = mask_of(w, from, to);
        if (!(mask & set->words[w]))
            continue; /* it is not written to, so a page of zeros stays unallocated */
        set->members -= popcount(mask & set->words[w]);
        set->words[w] &= ~mask;
    }
    if (first <= set->low)
        set->low = to;
    if (end >= set->high)
        set->high = from;
}

bool pages_has_all(const struct pages *set, size_t first, size_t end)
{
    if (!set->words || first < set->low || end > set->high)
        return first >= end;
    for (size_t w = first / BITS; w < words_for(end); w++) {
        uint64_t mask = mask_of(w, first, end);
        if ((set->words[w] & mask) != mask)
            return false;
    }
    return true;
}

bool pages_has_any(const struct pages *set, size_t first, size_t end)
{
    size_t run, stop;
    return pages_next_run(set, first, end, &run, &stop);
}

size_t pages_missing(const struct pages *set, size_t first, size_t end)
{
    size_t missing = end - first;
    for (size_t w = first / BITS; set->words && w < words_for(end); w++)
        missing -= popcount(set->words[w] & mask_of(w, first, end));
    return missing;
}

/* The first page in [from, end) whose membership is `member`, or end. */
static size_t find(const struct pages *set, size_t from, size_t end, bool member)
{
    for (size_t w = from / BITS; w < words_for(end); w++) {
        uint64_t bits = (member ? set->words[w] : ~set->words[w]) & mask_of(w, from, end);
        if (bits)
            return w * BITS + (size_t)__builtin_ctzll(bits);
    }
    return end;
}

bool pages_next_run(const struct pages *set, size_t from, size_t end, size_t *first, size_t *stop)
{
    size_t low = from > set->low ? from : set->low;
    size_t high = end < set->high ? end : set->high;
    if (!set->words || low >= high)
        return false;
    *first = find(set, low, high, true);
    if (*first == high)
        return false;
    *stop = find(set, *first, high, false);
    return true;
}
