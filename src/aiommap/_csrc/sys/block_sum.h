/* block_sum.h: the sum by which a block of a cache is checked. Knows nothing of Python, and makes
 * no system call.
 *
 *   bits 0-31    CRC32C, begun with the low half of the seed
 *   bits 32-62   of a sum of products: one wrong block in 2^32 passes a CRC alone
 *   bit 63       set, so that no sum is 0
 *
 * The products are those of NH (UMAC, RFC 4418): word w of the block is added to a key, and the
 * halves of that sum are multiplied. A word has 8 bytes, little endian; zeros fill the last words
 * up to 8. The lane of the word, w modulo 8, grows by the product and by the word. The key is
 * stir(seed) + (w + 1) * SUM_FACTOR. In the end s = stir(length), and s = stir(s ^ lane) for each
 * lane in turn. All of it is modulo 2^64.
 */
#ifndef AIOMMAP_BLOCK_SUM_H
#define AIOMMAP_BLOCK_SUM_H

#include <stddef.h>
#include <stdint.h>

#define SUM_FACTOR UINT64_C(0x9E3779B97F4A7C15)

uint64_t block_sum(const void *bytes, size_t length, uint64_t seed);

#endif
