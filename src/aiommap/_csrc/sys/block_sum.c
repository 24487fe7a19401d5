/* block_sum.c: see block_sum.h. */
#include "block_sum.h"

#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#include "crc32c.h"
#include "little_endian.h"

enum { LANES = 8, LINE_BYTES = 8 * LANES };

static uint64_t stir(uint64_t x)
{
    x = (x ^ x >> 32) * SUM_FACTOR;
    x = (x ^ x >> 29) * SUM_FACTOR;
    return x ^ x >> 32;
}

#if defined(__x86_64__)
#define WITH_INSTRUCTION __attribute__((target("sse4.2")))

enum {
    PAIRS = LANES / 2,
    /* What both sums take in one step: three lanes of the CRC, which hide the latency of its
     * instruction, and the same lines for the products, which use other units of the processor. */
    LANE_LINES = 6,
    LANE_BYTES = LANE_LINES * LINE_BYTES,
    STEP_BYTES = 3 * LANE_BYTES,
    /* How far to fetch ahead, as hardware does not do so across pages. Measured: twice as far is
     * slower. */
    AHEAD_BYTES = 2048,
};

static bool usable;             /* constant once the module is loaded */
static struct crc32c_skip lane; /* constant likewise */

/* Two lanes a register, by hand: a compiler does not find out that the factors have 32 bits. */
struct products { /* the caller's own */
    __m128i sums[PAIRS], keys[PAIRS];
};

static inline void begin_products(struct products *p, const uint64_t lanes[LANES], uint64_t key)
{
    for (int i = 0; i < PAIRS; i++) {
        uint64_t first = key + (uint64_t)(2 * i + 1) * SUM_FACTOR;
        p->sums[i] = _mm_loadu_si128((const __m128i *)(lanes + 2 * i));
        p->keys[i] = _mm_set_epi64x((long long)(first + SUM_FACTOR), (long long)first);
    }
}

static inline void end_products(const struct products *p, uint64_t lanes[LANES])
{
    for (int i = 0; i < PAIRS; i++)
        _mm_storeu_si128((__m128i *)(lanes + 2 * i), p->sums[i]);
}

static inline __attribute__((always_inline)) void add_line(struct products *p,
                                                           const unsigned char *at)
{
    const __m128i step = _mm_set1_epi64x((long long)(LANES * SUM_FACTOR));
#pragma GCC unroll 4 /* else the sums lie in memory */
    for (int i = 0; i < PAIRS; i++) {
        __m128i words = _mm_loadu_si128((const __m128i *)(at + 16 * i));
        __m128i mixed = _mm_add_epi64(words, p->keys[i]);
        __m128i product = _mm_mul_epu32(mixed, _mm_srli_epi64(mixed, 32));
        p->sums[i] = _mm_add_epi64(p->sums[i], _mm_add_epi64(words, product));
        p->keys[i] = _mm_add_epi64(p->keys[i], step);
    }
}

static void add_lines(uint64_t lanes[LANES], const unsigned char *at, size_t lines, uint64_t key)
{
    struct products p;
    begin_products(&p, lanes, key);
    for (; lines; lines--, at += LINE_BYTES)
        add_line(&p, at);
    end_products(&p, lanes);
}

/* Add whole steps to both sums, at twice the rate of one sum after the other; returns how many
 * bytes that was. */
WITH_INSTRUCTION static size_t add_steps(uint64_t lanes[LANES], uint32_t *crc,
                                         const unsigned char *bytes, size_t length, uint64_t key)
{
    struct products p;
    size_t done = 0;
    uint64_t first = ~*crc;
    if (!usable)
        return 0;
    begin_products(&p, lanes, key);
    for (; length - done >= STEP_BYTES; done += STEP_BYTES) {
        const unsigned char *at = bytes + done;
        uint64_t second = 0, third = 0;
        for (size_t line = 0; line < LANE_LINES; line++) {
#pragma GCC unroll 3
            for (size_t i = 0; i < 3; i++) {
                const unsigned char *here = at + (3 * line + i) * LINE_BYTES;
                __builtin_prefetch(here + AHEAD_BYTES); /* no fault, wherever that is */
                add_line(&p, here);
            }
            const unsigned char *here = at + line * LINE_BYTES;
#pragma GCC unroll 8
            for (size_t i = 0; i < LINE_BYTES; i += 8) {
                first = _mm_crc32_u64(first, load_little64(here + i));
                second = _mm_crc32_u64(second, load_little64(here + LANE_BYTES + i));
                third = _mm_crc32_u64(third, load_little64(here + 2 * LANE_BYTES + i));
            }
        }
        first = crc32c_skip(&lane, crc32c_skip(&lane, (uint32_t)first) ^ (uint32_t)second) ^
                (uint32_t)third;
    }
    end_products(&p, lanes);
    *crc = ~(uint32_t)first;
    return done;
}

__attribute__((constructor)) static void prepare_lanes(void)
{
    usable = crc32c_skip_make(&lane, LANE_BYTES);
}
#else
static void add_lines(uint64_t lanes[LANES], const unsigned char *at, size_t lines, uint64_t key)
{
    for (; lines; lines--, at += LINE_BYTES)
        for (int i = 0; i < LANES; i++) {
            uint64_t word = load_little64(at + 8 * i);
            key += SUM_FACTOR;
            uint64_t mixed = word + key;
            lanes[i] += (mixed & UINT32_MAX) * (mixed >> 32) + word;
        }
}

static size_t add_steps(uint64_t lanes[LANES], uint32_t *crc, const unsigned char *bytes,
                        size_t length, uint64_t key)
{
    (void)lanes, (void)crc, (void)bytes, (void)length, (void)key;
    return 0;
}
#endif

/* Add lines; zeros fill up the last one. */
static void add_rest(uint64_t lanes[LANES], const unsigned char *bytes, size_t length, uint64_t key)
{
    size_t lines = length / LINE_BYTES, rest = length % LINE_BYTES;
    add_lines(lanes, bytes, lines, key);
    if (rest) {
        unsigned char line[LINE_BYTES] = {0};
        memcpy(line, bytes + lines * LINE_BYTES, rest);
        add_lines(lanes, line, 1, key + (uint64_t)lines * LANES * SUM_FACTOR);
    }
}

uint64_t block_sum(const void *bytes, size_t length, uint64_t seed)
{
    uint64_t lanes[LANES] = {0}, key = stir(seed), sum = stir(length);
    uint32_t crc = (uint32_t)seed;
    size_t done = add_steps(lanes, &crc, bytes, length, key);
    const unsigned char *rest = (const unsigned char *)bytes + done;
    add_rest(lanes, rest, length - done, key + (uint64_t)(done / 8) * SUM_FACTOR);
    crc = crc32c(crc, rest, length - done);
    for (int i = 0; i < LANES; i++)
        sum = stir(sum ^ lanes[i]);
    return (sum & ~(uint64_t)UINT32_MAX) | crc | UINT64_C(1) << 63;
}
