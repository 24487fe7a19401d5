/* file_sums.h: checksums of many overlapping stretches of one file, at the cost of about one pass
 * over it. Knows nothing of Python.
 *
 * A CRC is linear: the one of a stretch follows from those of all bytes before its start and before
 * its end, each moved to its place. So the file is summed once, and the state is kept at every
 * SUMMED_BYTES.
 */
#ifndef AIOMMAP_FILE_SUMS_H
#define AIOMMAP_FILE_SUMS_H

#include <stddef.h>
#include <stdint.h>

#define SUMMED_BYTES 256

/* Some bytes of the file, kept because the ends of stretches often lie close together. */
struct summed_block { /* the caller's own, in a struct file_sums */
    int64_t at;
    char bytes[SUMMED_BYTES];
};

struct file_sums { /* the caller's own */
    int fd;             /* with `start` and `end`, set before the first call; the rest is 0 */
    int64_t start, end; /* no stretch goes beyond them */
    uint32_t *states;   /* of what lies between the start and each multiple of SUMMED_BYTES */
    size_t known;       /* how many of `states` are known */
    char *buffer;
    struct summed_block *blocks; /* at the beginning and at the end of the last stretch */
    int64_t written_from, written_to; /* no hole lies between these */
    uint64_t summed;             /* how many bytes were summed, for callers that count them */
};

/* Continue a checksum by the bytes between two offsets, in whole words of 8 bytes; bytes that the
 * file has lost count as zeros. 0 or an errno number. */
int file_sums_add(struct file_sums *sums, uint32_t *crc, int64_t from, int64_t to);
void file_sums_free(struct file_sums *sums);

#endif
