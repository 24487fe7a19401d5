/* little_endian.h: words as they lie in files, whatever the processor's order of bytes. */
#ifndef AIOMMAP_LITTLE_ENDIAN_H
#define AIOMMAP_LITTLE_ENDIAN_H

#include <stdint.h>
#include <string.h>

/* SAFETY: 8 bytes can be read there, at any alignment. */
static inline uint64_t load_little64(const unsigned char *from)
{
    uint64_t word;
    memcpy(&word, from, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

#endif
