/* file_sums.c: see file_sums.h. A state is a checksum with its bits flipped, and 0 at the start. */
#include "file_sums.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"
#include "file_io.h"

#define PIECE_BYTES ((size_t)64 << 10)

static uint32_t continued(struct file_sums *sums, uint32_t state, const char *bytes, size_t length)
{
    sums->summed += length;
    return ~crc32c(~state, bytes, length);
}

/* Find the first data at an offset or behind it: where it begins, and where it ends. */
static void find_written(struct file_sums *sums, int64_t at)
{
    sums->written_from = file_find_data(sums->fd, at, sums->end);
    sums->written_to = file_find_hole(sums->fd, sums->written_from, sums->end);
    if (sums->written_to == sums->written_from) /* somebody is changing the file */
        sums->written_to = sums->end;
}

/* Read up to the end. Holes count as zeros and are not read: that would leave pages of zeros in
 * memory, which SEEK_DATA takes for data from then on. */
static int read_or_zeros(struct file_sums *sums, char *to, size_t length, int64_t at)
{
    int64_t end = at + (int64_t)length < sums->end ? at + (int64_t)length : sums->end;
    memset(to, 0, length);
    for (int64_t from = at; from < end; from = sums->written_to) {
        if (from < sums->written_from || from >= sums->written_to)
            find_written(sums, from);
        if (from < sums->written_from)
            from = sums->written_from;
        int64_t until = end < sums->written_to ? end : sums->written_to;
        ssize_t got = from < until ? file_read(sums->fd, to + (from - at), (size_t)(until - from), from) : 0;
        if (got < 0)
            return (int)-got;
    }
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
        int error = read_or_zeros(sums, sums->buffer, length, at);
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
        error = read_or_zeros(sums, block->bytes, SUMMED_BYTES, at);
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
        *crc = ~(crc32c_move(~*crc ^ first, (uint64_t)(to - from)) ^ last);
    return error;
}

void file_sums_free(struct file_sums *sums)
{
    free(sums->states);
    free(sums->blocks);
    free(sums->buffer);
}
