/* crc32c.h: CRC32C (Castagnoli), of logs and of cached blocks. Knows nothing of Python, and makes no
 * system call. */
#ifndef AIOMMAP_CRC32C_H
#define AIOMMAP_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Continue a checksum; begin with 0. */
uint32_t crc32c(uint32_t crc, const void *data, size_t length);

/* Copy, and continue a checksum by what was copied. From about that many bytes on, this takes less
 * time than one after the other. */
#define COPY_AND_SUM_BYTES 256
uint32_t crc32c_copy(uint32_t crc, void *to, const void *from, size_t length);

/* The ways to compute it; the first works everywhere. */
enum crc32c_way { CRC32C_TABLE, CRC32C_INSTRUCTION, CRC32C_FOLDING };
/* The same by one of them; false if this machine lacks it, or the data is too short for it. */
bool crc32c_by(enum crc32c_way way, uint32_t *crc, const void *data, size_t length);

/* Continue a state, which is a checksum with its bits flipped, by zeros: any number of them below
 * 32 GiB, in whole words of 8 bytes. A CRC is linear: the state of several parts is the sum of
 * theirs, each moved over as many zeros as bytes follow it. */
uint32_t crc32c_move(uint32_t state, uint64_t zeros);
/* The same by tables, for one number of zeros: for code that sums lanes side by side, to hide the
 * latency of the processor's instruction. */
struct crc32c_skip { /* constant once made */
    uint32_t of_byte[4][256];
};
/* Make the tables for that many zeros, whole words of 8 bytes, in a struct that is all zeros; false
 * if the processor lacks the instruction. */
bool crc32c_skip_make(struct crc32c_skip *skip, size_t zeros);
static inline uint32_t crc32c_skip(const struct crc32c_skip *skip, uint32_t state)
{
    return skip->of_byte[0][state & 0xFF] ^ skip->of_byte[1][state >> 8 & 0xFF] ^
           skip->of_byte[2][state >> 16 & 0xFF] ^ skip->of_byte[3][state >> 24];
}

#endif
