/* block_map.c: see block_map.h. */
#include "block_map.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#include <sys/uio.h>

#include "block_sum.h"
#include "file_io.h"
#include "guard.h"
#include "page.h"
#include "region.h"
#include "store_turns.h"

/* A long read compares the words after each piece. */
enum { PIECE_BLOCKS = 64 };

int64_t block_map_bytes(int64_t count)
{
    int64_t words = (4 * count + 7) & ~(int64_t)7;
    return BLOCK_MAP_HEADER_BYTES + words + 8 * count;
}

int block_map_open(struct block_map *map, int fd)
{
    map->damage.first_bad = DAMAGE_NONE;
    struct region_options options = {.writable = true, .damage = &map->damage};
    size_t page = page_size(), length = (size_t)block_map_bytes(map->count);
    int error = region_map(&map->region, fd, (length + page - 1) & ~(page - 1), &options);
    if (error)
        return error;
    int64_t words = (4 * map->count + 7) & ~(int64_t)7;
    map->words = (uint32_t *)(map->region->base + BLOCK_MAP_HEADER_BYTES);
    map->sums = (uint64_t *)(map->region->base + BLOCK_MAP_HEADER_BYTES + words);
    /* The loop thread loads words: read them in, and keep them in memory if the system lets us. */
    for (size_t at = 0; at < length; at += PIECE_BYTES)
        region_populate(map->region, at, length - at, false);
    region_lock(map->region, 0, map->region->length, true);
    return 0;
}

void block_map_close(struct block_map *map)
{
    if (map->region)
        region_unmap(map->region);
    map->region = NULL;
}

bool block_map_begin_read(const struct block_map *map, int64_t first, int64_t end, uint32_t *words)
{
    for (int64_t block = first; block < end; block++) {
        words[block - first] = block_word(map, block);
        if (block_state(words[block - first]) != BLOCK_PRESENT)
            return false;
    }
    return true;
}

bool block_map_end_read(struct block_map *map, int64_t first, int64_t end, const uint32_t *words)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    for (int64_t block = first; block < end; block++) {
        uint32_t now = __atomic_load_n(&map->words[block], __ATOMIC_RELAXED);
        if ((now ^ words[block - first]) & ~BLOCK_REFERENCED)
            return false;
        if (!(now & BLOCK_REFERENCED)) /* load first: a store takes the line from other readers */
            __atomic_compare_exchange_n(&map->words[block], &now, now | BLOCK_REFERENCED, false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    return !is_damaged(&map->damage);
}

size_t block_map_read(struct block_map *map, int64_t offset, char *to, size_t length)
{
    uint32_t words[PIECE_BLOCKS];
    size_t done = 0;
    while (done < length) {
        int64_t at = offset + (int64_t)done, first = at >> map->shift;
        size_t piece = (size_t)(block_offset(map, first + PIECE_BLOCKS) - at);
        if (piece > length - done)
            piece = length - done;
        int64_t end = ((at + (int64_t)piece - 1) >> map->shift) + 1;
        if (!block_map_begin_read(map, first, end, words) ||
            file_read_own(map->data_fd, to + done, piece, at) != (ssize_t)piece ||
            !block_map_end_read(map, first, end, words))
            break;
        done += piece;
    }
    return done;
}

static void wake(const uint32_t *word)
{
#if defined(__linux__)
    enum { FUTEX_WAKE_CALL = 1 };
    syscall(SYS_futex, word, FUTEX_WAKE_CALL, INT_MAX, NULL, NULL, 0);
#else
    (void)word;
#endif
}

bool block_map_exchange(struct block_map *map, int64_t block, enum block_state state, uint32_t *word)
{
    uint32_t old = *word, generation = old >> BLOCK_GENERATION_SHIFT, new;
    if (state == BLOCK_BUSY)
        new = BLOCK_BUSY | map->owner << BLOCK_OWNER_SHIFT |
              (generation + 1) << BLOCK_GENERATION_SHIFT;
    else
        new = (uint32_t)state | generation << BLOCK_GENERATION_SHIFT |
              (state == BLOCK_PRESENT ? BLOCK_REFERENCED : 0);
    if (is_damaged(&map->damage) ||
        !__atomic_compare_exchange_n(&map->words[block], word, new, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE))
        return false;
    *word = new;
    if (block_state(old) == BLOCK_BUSY)
        wake(&map->words[block]);
    return true;
}

/* The sum of a block at its place in its object. */
static uint64_t sum_of(const struct block_map *map, int64_t block, const char *bytes)
{
    return block_sum(bytes, block_length(map, block), map->salt ^ (uint64_t)block * SUM_FACTOR);
}

/* Why nobody may write to the data; 0 if one may (block_map.3). */
static int check_data(const struct block_map *map)
{
    struct file_stat found;
    if (file_stat(map->data_fd, &found) || found.size != map->size)
        return ESTALE;
    return found.links ? 0 : ENOENT;
}

/* Write one block that is claimed, store its sum and publish it; *published grows if the claim was
 * ours to the end. 0 or an errno number. */
static int store_block(struct block_map *map, int64_t block, uint32_t word, char *from,
                       size_t *published)
{
    int error;
    size_t length = block_length(map, block);
    struct iovec piece = {.iov_base = from, .iov_len = length};
    if (file_write(map->data_fd, &piece, 1, block_offset(map, block), &error) < length)
        return error ? error : ENOSPC;
    __atomic_store_n(&map->sums[block], sum_of(map, block, from), __ATOMIC_RELAXED);
    *published += block_map_exchange(map, block, BLOCK_PRESENT, &word); /* block_map.1 */
    return 0;
}

size_t block_map_store(struct block_map *map, const int64_t *blocks, const uint32_t *words,
                       size_t count, const char *bytes, int64_t start, int *error)
{
    size_t published = 0;
    *error = check_data(map);
    for (size_t i = 0; i < count && !*error; i++) {
        char *from = (char *)bytes + (block_offset(map, blocks[i]) - start);
        store_turn_take();
        *error = store_block(map, blocks[i], words[i], from, &published);
        store_turn_give();
    }
    return published;
}

/* What it takes to compare blocks: the data gets mapped once a block is found in memory. */
struct look { /* the caller's own */
    char *room; /* for a copy of a block */
    struct region *region;
    struct damage damage;
};

/* Whether to sum a block where it is mapped: if its last page is in memory, which comes last when
 * the kernel reads ahead. The kernel reads ahead best for read calls, so other blocks are
 * copied. */
static bool can_map(struct look *look, const struct block_map *map, int64_t block)
{
    char byte;
    off_t last = block_offset(map, block) + (off_t)block_length(map, block) - 1;
    if (is_damaged(&look->damage) || file_read_nowait(map->data_fd, &byte, 1, last) != 1)
        return false;
    if (look->region)
        return true;
    /* SAFETY: a load from a lost page finds zeros, and the handler notes the damage (guard.5). But
     * SIGBUS kills a thread that blocks it. */
    guard_refresh();
    struct region_options options = {.damage = &look->damage};
    return !guard_is_blocked() && !region_map(&look->region, map->data_fd,
                                              (size_t)page_up(map->size), &options);
}

/* Whether the bytes of a block can be read, and match a sum. */
static bool block_matches(struct look *look, const struct block_map *map, int64_t block,
                          uint64_t sum)
{
    off_t offset = block_offset(map, block);
    size_t length = block_length(map, block);
    if (!can_map(look, map, block))
        return file_read_own(map->data_fd, look->room, length, offset) == (ssize_t)length &&
               sum_of(map, block, look->room) == sum;
    if (sum_of(map, block, look->region->base + offset) != sum)
        return false;
    __atomic_thread_fence(__ATOMIC_ACQUIRE); /* as in region_copy_out */
    return !is_damaged(&look->damage) && file_own(map->data_fd, offset, length) == length;
}

/* 1: it matches, and is PRESENT; 0: it does not, and is EMPTY; -1: it had no data, or is
 * changing. */
static int verify_block(struct look *look, struct block_map *map, int64_t block)
{
    uint32_t word = block_word(map, block);
    bool suspect = block_state(word) == BLOCK_SUSPECT;
    if (!suspect && block_state(word) != BLOCK_PRESENT)
        return -1;
    uint64_t sum = __atomic_load_n(&map->sums[block], __ATOMIC_RELAXED);
    bool good = block_matches(look, map, block, sum);
    if (good && !suspect)
        return (block_word(map, block) ^ word) & ~BLOCK_REFERENCED ? -1 : 1;
    for (;;) {
        uint32_t seen = word;
        if (block_map_exchange(map, block, good ? BLOCK_PRESENT : BLOCK_EMPTY, &seen))
            return good;
        if ((seen ^ word) & ~BLOCK_REFERENCED || is_damaged(&map->damage))
            return -1;
        word = seen;
    }
}

struct block_counts block_map_verify(struct block_map *map, int64_t first, int64_t end, char *room)
{
    struct block_counts counts = {0};
    struct look look = {.room = room, .damage = {.first_bad = DAMAGE_NONE}};
    for (int64_t block = first; block < end; block++) {
        int found = verify_block(&look, map, block);
        counts.good += found == 1;
        counts.bad += found == 0;
        counts.bytes += found < 0 ? 0 : (int64_t)block_length(map, block);
    }
    if (look.region)
        region_unmap(look.region);
    return counts;
}

void block_map_distrust(struct block_map *map)
{
    for (int64_t block = 0; block < map->count; block++) {
        uint32_t word = block_word(map, block);
        if (block_state(word) == BLOCK_PRESENT)
            block_map_exchange(map, block, BLOCK_SUSPECT, &word);
        else if (block_state(word) == BLOCK_BUSY)
            block_map_exchange(map, block, BLOCK_EMPTY, &word);
    }
}

bool block_map_sweep(struct block_map *map, int64_t block, bool force, uint32_t *word)
{
    uint32_t seen = block_word(map, block);
    if (block_state(seen) != BLOCK_PRESENT && block_state(seen) != BLOCK_SUSPECT)
        return false;
    if (seen & BLOCK_REFERENCED && !force) {
        __atomic_compare_exchange_n(&map->words[block], &seen, seen & ~BLOCK_REFERENCED, false,
                                    __ATOMIC_RELAXED, __ATOMIC_RELAXED);
        return false;
    }
    *word = seen;
    return block_map_exchange(map, block, BLOCK_BUSY, word);
}

void block_map_wait(const struct block_map *map, int64_t block, uint32_t word, int64_t nanoseconds)
{
    struct timespec span = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
#if defined(__linux__)
    enum { FUTEX_WAIT_CALL = 0 };
    struct { int64_t seconds, nanoseconds; } moment = {span.tv_sec, span.tv_nsec};
#if defined(SYS_futex_time64)
    long number = SYS_futex_time64;
#else
    long number = SYS_futex;
#endif
    if (!syscall(number, &map->words[block], FUTEX_WAIT_CALL, word, &moment, NULL, 0) ||
        errno == EAGAIN || errno == ETIMEDOUT || errno == EINTR)
        return;
#endif
    /* A sandbox without futexes on files: look again soon. */
    const int64_t soon = 5000000;
    if (nanoseconds > soon)
        span = (struct timespec){.tv_nsec = soon};
    if (block_word(map, block) == word)
        nanosleep(&span, NULL);
}
