/* block_sum.c: see block_sum.h. */
#include "block_sum.h"

#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
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

#if defined(__SSE2__)
/* Two lanes a register: a compiler does not find that the factors have 32 bits. */
static void add_lines(uint64_t lanes[LANES], const unsigned char *at, size_t lines, uint64_t key)
{
    enum { PAIRS = LANES / 2 };
    __m128i sums[PAIRS], keys[PAIRS], step = _mm_set1_epi64x((long long)(LANES * SUM_FACTOR));
    for (int i = 0; i < PAIRS; i++) {
        uint64_t first = key + (uint64_t)(2 * i + 1) * SUM_FACTOR;
        sums[i] = _mm_loadu_si128((const __m128i *)(lanes + 2 * i));
        keys[i] = _mm_set_epi64x((long long)(first + SUM_FACTOR), (long long)first);
    }
    for (; lines; lines--, at += LINE_BYTES) {
#pragma GCC unroll 4 /* or the sums lie in memory */
        for (int i = 0; i < PAIRS; i++) {
            __m128i words = _mm_loadu_si128((const __m128i *)(at + 16 * i));
            __m128i mixed = _mm_add_epi64(words, keys[i]);
            __m128i product = _mm_mul_epu32(mixed, _mm_srli_epi64(mixed, 32));
            sums[i] = _mm_add_epi64(sums[i], _mm_add_epi64(words, product));
            keys[i] = _mm_add_epi64(keys[i], step);
        }
    }
    for (int i = 0; i < PAIRS; i++)
        _mm_storeu_si128((__m128i *)(lanes + 2 * i), sums[i]);
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
#endif

static uint64_t sum_products(const unsigned char *bytes, size_t length, uint64_t key)
{
    uint64_t lanes[LANES] = {0};
    size_t lines = length / LINE_BYTES, rest = length % LINE_BYTES;
    add_lines(lanes, bytes, lines, key);
    if (rest) {
        unsigned char line[LINE_BYTES] = {0};
        memcpy(line, bytes + lines * LINE_BYTES, rest);
        add_lines(lanes, line, 1, key + (uint64_t)lines * LANES * SUM_FACTOR);
    }
    uint64_t sum = stir(length);
    for (int i = 0; i < LANES; i++)
        sum = stir(sum ^ lanes[i]);
    return sum;
}

uint64_t block_sum(const void *bytes, size_t length, uint64_t seed)
{
    uint64_t products = sum_products(bytes, length, stir(seed));
    return (products & ~(uint64_t)UINT32_MAX) | crc32c((uint32_t)seed, bytes, length) |
           UINT64_C(1) << 63;
}
