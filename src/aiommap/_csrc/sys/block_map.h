/* block_map.h: the words and checksums of one cached object, which processes share by mapping them.
 * Knows nothing of Python.
 *
 * The object lies in a sparse file, in blocks of a power of 2. A block has a word, which says what
 * its bytes are worth, and a sum. Single instructions change a word, so any process may die at any
 * moment, and another one goes on.
 *
 *   EMPTY --claim--> BUSY --publish--> PRESENT --evict--> BUSY --> EMPTY
 *                     | dead: another one claims it       PRESENT --reboot--> SUSPECT --verify--> PRESENT
 *
 * Invariants.
 *   1  A word becomes PRESENT only after all bytes of its block were written and its sum was
 *      stored, by the process that holds the word BUSY; or after a SUSPECT block was found to match
 *      its sum.
 *   2  Each claim moves the generation of a word. So a copy of a block is good if the word was
 *      PRESENT before it, and is the same after it but for the referenced bit.
 *   3  Nobody writes behind the end of the file, and nobody writes at all if the file has another
 *      length than the object: then somebody cut it off, and what is read of it may be zeros.
 *   4  Where the file of the words lost pages, faults find zeros (sys/fault_table.h): every block
 *      looks EMPTY. Nobody believes anything in a damaged map, or changes it in the file.
 */
#ifndef AIOMMAP_BLOCK_MAP_H
#define AIOMMAP_BLOCK_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fault_table.h"

struct region;

#define BLOCK_MAP_HEADER_BYTES 4096

enum block_state { BLOCK_EMPTY, BLOCK_BUSY, BLOCK_PRESENT, BLOCK_SUSPECT };

#define BLOCK_STATE_MASK 3u
#define BLOCK_REFERENCED 4u
#define BLOCK_OWNER_SHIFT 3
#define BLOCK_OWNERS 512u
#define BLOCK_GENERATION_SHIFT 12

struct block_map { /* constant once mapped, but for `damage` and what the words point at */
    struct region *region;
    uint32_t *words; /* in the region */
    uint64_t *sums;  /* in the region */
    int64_t size;    /* bytes of the object */
    int64_t count;   /* how many blocks */
    unsigned shift;  /* a block has 2**shift bytes */
    uint64_t salt;   /* of the object: a block of another one does not match */
    int data_fd;
    uint32_t owner;  /* the number that our claims carry */
    struct damage damage; /* atomic; written by survive.c */
};

struct block_counts { /* the caller's own */
    int64_t good, bad; /* blocks */
    int64_t bytes;     /* of both */
};

static inline enum block_state block_state(uint32_t word)
{
    return (enum block_state)(word & BLOCK_STATE_MASK);
}

static inline int64_t block_offset(const struct block_map *map, int64_t block)
{
    return block << map->shift;
}

static inline size_t block_length(const struct block_map *map, int64_t block)
{
    int64_t left = map->size - block_offset(map, block), whole = (int64_t)1 << map->shift;
    return (size_t)(left < whole ? left : whole);
}

static inline uint32_t block_word(const struct block_map *map, int64_t block)
{
    return __atomic_load_n(&map->words[block], __ATOMIC_ACQUIRE);
}

/* The size of the file that has the words and sums of that many blocks. */
int64_t block_map_bytes(int64_t count);
/* Map the words and sums of `count` blocks; 0 or an errno number. */
int block_map_open(struct block_map *map, int fd);
void block_map_close(struct block_map *map);

/* Load the words of blocks [first, end) before a copy; false unless all of them are PRESENT. */
bool block_map_begin_read(const struct block_map *map, int64_t first, int64_t end, uint32_t *words);
/* Whether the copy made since then is good; if it is, mark the blocks as referenced. */
bool block_map_end_read(struct block_map *map, int64_t first, int64_t end, const uint32_t *words);
/* Read a range through the descriptor, piece by piece; returns how many bytes are good. */
size_t block_map_read(struct block_map *map, int64_t offset, char *to, size_t length);

/* Change a word to another state, if it still equals *word: to BUSY by a claim of our own, which
 * moves the generation. Wakes those who wait for a BUSY word. *word is the new word then; false if
 * the word was another one, which *word then is. */
bool block_map_exchange(struct block_map *map, int64_t block, enum block_state state, uint32_t *word);
/* Write blocks that are claimed and publish them; `bytes` begins with byte `start` of the object.
 * Returns how many were published: a claim that was taken over is not. *error says why it stopped
 * short: ESTALE if the data was cut off, ENOENT if the data has no name, so that nobody else would
 * find the blocks. */
size_t block_map_store(struct block_map *map, const int64_t *blocks, const uint32_t *words,
                       size_t count, const char *bytes, int64_t start, int *error);
/* Compare PRESENT and SUSPECT blocks of [first, end) with their sums. Those that match become
 * PRESENT, those that do not become EMPTY. Other blocks do not count, nor do those that change
 * meanwhile. `room` has room for a block, and is quickest if it begins a cache line. The SIGBUS
 * handler has to be installed. */
struct block_counts block_map_verify(struct block_map *map, int64_t first, int64_t end, char *room);
/* After a reboot, or if the file may be another one: believe nothing, and end all claims. The
 * caller is alone with the file. */
void block_map_distrust(struct block_map *map);
/* One step of the clock algorithm: claim a block that was not referenced since the last step, or
 * any with `force`; else forget that it was. False if nothing is claimed. */
bool block_map_sweep(struct block_map *map, int64_t block, bool force, uint32_t *word);
/* Wait until the word is another one, or somebody wakes this thread, or the time is over. */
void block_map_wait(const struct block_map *map, int64_t block, uint32_t word, int64_t nanoseconds);

#endif
