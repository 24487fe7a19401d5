/* file_sums.c: see file_sums.h. A state is a checksum with its bits flipped, and 0 at the start. */
#include "file_sums.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"
#include "file_io.h"

#define POLYNOMIAL 0x82F63B78u /* CRC32C's, its bits reversed */
#define PIECE_BYTES ((size_t)64 << 10)
#define DIGITS 4 /* of the base 256, of a number of words */

/* What so many words of zeros make of a state: it is multiplied by a power of x. Constant once the
 * module is loaded. */
static uint32_t factors[DIGITS][256];

/* The product of two polynomials modulo CRC32C's; the highest bit is the lowest power. */
static uint32_t multiply(uint32_t one, uint32_t other)
{
    uint32_t product = 0;
    for (; one; one <<= 1) {
        product ^= other & -(one >> 31);
        other = other >> 1 ^ (POLYNOMIAL & -(other & 1));
    }
    return product;
}

__attribute__((constructor)) static void make_factors(void)
{
    uint32_t word = UINT32_C(1) << 30; /* x, to become its 64th power */
    for (int doubled = 0; doubled < 6; doubled++)
        word = multiply(word, word);
    for (int digit = 0; digit < DIGITS; digit++) {
        factors[digit][0] = UINT32_C(1) << 31;
        for (int value = 1; value < 256; value++)
            factors[digit][value] = multiply(factors[digit][value - 1], word);
        word = multiply(factors[digit][255], word);
    }
}

static uint32_t moved(uint32_t state, int64_t bytes)
{
    uint64_t words = (uint64_t)bytes / 8;
    for (int digit = 0; words; digit++, words >>= 8)
        if (words & 0xFF)
            state = multiply(state, factors[digit][words & 0xFF]);
    return state;
}

static uint32_t continued(struct file_sums *sums, uint32_t state, const char *bytes, size_t length)
{
    sums->summed += length;
    return ~crc32c(~state, bytes, length);
}

static int read_or_zeros(int fd, char *to, size_t length, int64_t at)
{
    ssize_t got = file_read(fd, to, length, at);
    if (got < 0)
        return (int)-got;
    memset(to + got, 0, length - (size_t)got);
    return 0;
}

static int allocate(struct file_sums *sums)
{
    sums->states = calloc((size_t)(sums->end - sums->start) / SUMMED_BYTES + 1, sizeof *sums->states);
    sums->blocks = calloc(2, sizeof *sums->blocks);
    sums->buffer = malloc(PIECE_BYTES);
    if (!sums->states || !sums->blocks || !sums->buffer)
        return ENOMEM;
    sums->known = 1;
    return 0;
}

/* Sum the file as far as a multiple of SUMMED_BYTES. */
static int know(struct file_sums *sums, size_t number)
{
    while (sums->known <= number) {
        int64_t at = sums->start + (int64_t)(sums->known - 1) * SUMMED_BYTES;
        size_t left = (number + 1 - sums->known) * SUMMED_BYTES;
        size_t length = left < PIECE_BYTES ? left : PIECE_BYTES;
        int error = read_or_zeros(sums->fd, sums->buffer, length, at);
        if (error)
            return error;
        for (size_t done = 0; done < length; done += SUMMED_BYTES, sums->known++)
            sums->states[sums->known] = continued(sums, sums->states[sums->known - 1],
                                                  sums->buffer + done, SUMMED_BYTES);
    }
    return 0;
}

/* The state of all that lies before an offset. */
static int state_at(struct file_sums *sums, struct summed_block *block, int64_t offset,
                    uint32_t *state)
{
    size_t number = (size_t)(offset - sums->start) / SUMMED_BYTES;
    int64_t at = sums->start + (int64_t)number * SUMMED_BYTES;
    int error = know(sums, number);
    if (!error && block->at != at) {
        error = read_or_zeros(sums->fd, block->bytes, SUMMED_BYTES, at);
        block->at = error ? 0 : at;
    }
    if (!error)
        *state = continued(sums, sums->states[number], block->bytes, (size_t)(offset - at));
    return error;
}

int file_sums_add(struct file_sums *sums, uint32_t *crc, int64_t from, int64_t to)
{
    uint32_t first, last;
    int error = sums->known ? 0 : allocate(sums);
    if (!error)
        error = state_at(sums, &sums->blocks[0], from, &first);
    if (!error)
        error = state_at(sums, &sums->blocks[1], to, &last);
    if (!error)
        *crc = ~(moved(~*crc ^ first, to - from) ^ last);
    return error;
}

void file_sums_free(struct file_sums *sums)
{
    free(sums->states);
    free(sums->blocks);
    free(sums->buffer);
}
