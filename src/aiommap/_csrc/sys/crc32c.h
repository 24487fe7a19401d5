/* crc32c.h: CRC32C (Castagnoli), of logs and of cached blocks. Knows nothing of Python, and makes no
 * system call. */
#ifndef AIOMMAP_CRC32C_H
#define AIOMMAP_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continue a checksum; begin with 0. */
uint32_t crc32c(uint32_t crc, const void *data, size_t length);
/* The same by tables, which machines without an instruction use. */
uint32_t crc32c_by_table(uint32_t crc, const void *data, size_t length);

#endif
