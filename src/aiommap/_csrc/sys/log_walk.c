/* log_walk.c: see log_walk.h. */
#include "log_walk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "file_io.h"
#include "file_sums.h"
#include "page.h"

#define WINDOW_BYTES ((size_t)1 << 20)
/* Frames up to this size are summed directly, and not by file_sums. */
#define SMALL_BYTES 1024

/* What is in memory of a segment, [start, start + filled). */
struct window { /* the caller's own */
    int fd;
    char *memory; /* of `room` bytes and a page more */
    char *bytes;  /* in the memory, as far into a page as they are in the file */
    size_t room, filled;
    int64_t start, end; /* end: of what may be read */
    int64_t data_end;   /* no hole lies before it */
};

/* Have `length` bytes from `offset` in memory, or fewer where the file ends; *available says how
 * many. 0 or an errno number.
 *
 * Bytes that nobody asked for are read only up to the next hole. Reading a hole leaves pages of
 * zeros in memory, which SEEK_DATA takes for data from then on: a search would then read all the
 * room that is reserved. */
static int window_at(struct window *window, int64_t offset, size_t length, size_t *available)
{
    size_t most = offset < window->end ? (size_t)(window->end - offset) : 0;
    if (length > most)
        length = most;
    if (offset < window->start || offset + (int64_t)length > window->start + (int64_t)window->filled) {
        if (length > window->room || !window->memory) {
            size_t room = length > WINDOW_BYTES ? length : WINDOW_BYTES;
            free(window->memory);
            window->bytes = NULL;
            window->memory = malloc(room + page_size());
            if (!window->memory)
                return ENOMEM;
            window->room = room;
        }
        if (offset >= window->data_end)
            window->data_end = file_find_hole(window->fd, offset, window->end);
        size_t ahead = offset < window->data_end ? (size_t)(window->data_end - offset) : 0;
        size_t wanted = ahead < window->room ? ahead : window->room;
        window->bytes = place_as_in_file(window->memory, offset);
        ssize_t got =
            file_read(window->fd, window->bytes, length < wanted ? wanted : length, offset);
        if (got < 0)
            return (int)-got;
        window->start = offset;
        window->filled = (size_t)got;
    }
    *available = (size_t)(window->start + (int64_t)window->filled - offset);
    return 0;
}

static char *window_bytes(const struct window *window, int64_t offset)
{
    return window->bytes + (offset - window->start);
}

static void scan_over(struct log_scan *scan, const struct frame *frame, const char *data)
{
    uint64_t first, proof = frame_proof(frame);
    if (proof > scan->proof) {
        scan->proof = proof;
        if (proof == scan->place.sequence - 1) /* so is the first claim behind each flush */
            scan->proven_at = scan->record_end;
    }
    if (frame->kind == FRAME_DISCARD && frame->length >= sizeof first) {
        memcpy(&first, data, sizeof first);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        first = __builtin_bswap64(first);
#endif
        scan->first = first;
    }
    scan->end_at = frame->kind == FRAME_END ? scan->offset : -1;
    scan->place.life = frame->life;
    scan->last_crc = frame->crc;
    scan->offset += (int64_t)frame_bytes(frame->length);
    scan->place.position += frame_bytes(frame->length);
    if (frame->kind == FRAME_RECORD) {
        scan->records++;
        scan->place.sequence++;
        scan->record_end = scan->offset;
        if (frame->sequence == scan->proof)
            scan->proven_at = scan->offset;
    }
}

int log_scan(struct log_scan *scan)
{
    struct window window = {.fd = scan->fd, .end = scan->end, .start = -1};
    int error = 0;
    scan->end_at = -1;
    scan->proven_at = scan->record_end = scan->offset;
    while (scan->end_at < 0) {
        struct frame frame;
        size_t available = 0;
        error = window_at(&window, scan->offset, FRAME_HEADER_BYTES, &available);
        if (error)
            break;
        enum frame_verdict verdict = frame_decode(window_bytes(&window, scan->offset), available,
                                                  &scan->place, &frame);
        if (verdict == FRAME_INCOMPLETE && available >= FRAME_HEADER_BYTES &&
            frame_bytes(frame.length) <= (uint64_t)(scan->end - scan->offset)) {
            error = window_at(&window, scan->offset, (size_t)frame_bytes(frame.length), &available);
            if (error)
                break;
            verdict = frame_decode(window_bytes(&window, scan->offset), available, &scan->place,
                                   &frame);
        }
        if (verdict != FRAME_FITS ||
            (frame.kind == FRAME_RECORD && frame.sequence >= scan->until))
            break;
        scan_over(scan, &frame, window_bytes(&window, scan->offset) + FRAME_HEADER_BYTES);
    }
    free(window.memory);
    return error;
}

/* Find out whether a frame is good; its header is in memory. */
static int check_frame(struct log_search *search, struct window *window, struct file_sums *sums,
                       struct frame *frame, bool *good)
{
    struct frame_place place = {.salt = search->salt,
                                .position = search->position,
                                .sequence = frame->sequence,
                                .life = frame->life};
    uint64_t length = frame_bytes(frame->length);
    int error;
    if (length > SMALL_BYTES) {
        int64_t data = search->offset + FRAME_HEADER_BYTES;
        uint32_t crc = frame_header_checksum(window_bytes(window, search->offset), &place);
        error = file_sums_add(sums, &crc, data, search->offset + (int64_t)length);
        *good = crc == frame->crc;
    } else {
        size_t available = 0;
        error = window_at(window, search->offset, (size_t)length, &available);
        if (!error)
            *good = frame_decode(window_bytes(window, search->offset), available, &place, frame) ==
                    FRAME_FITS;
        sums->summed += length;
    }
    return error;
}

/* Whether there is a good frame at the offset, of whatever sequence and life.
 *
 * Data may be made up to look like a header at every place. So the bytes of a long frame are not
 * read and summed again for each of them. */
static int search_at(struct log_search *search, struct window *window, struct file_sums *sums,
                     struct frame *frame, bool *found)
{
    size_t available = 0;
    *found = false;
    if (window->data_end - search->offset < FRAME_HEADER_BYTES)
        return 0; /* the kind of a frame would lie in the hole */
    int error = window_at(window, search->offset, FRAME_HEADER_BYTES, &available);
    if (error || available < FRAME_HEADER_BYTES)
        return error;
    frame_header(window_bytes(window, search->offset), frame);
    /* Only as many records as fit can lie before it. */
    uint64_t most =
        search->base + (uint64_t)(search->offset - SEGMENT_HEADER_BYTES) / FRAME_HEADER_BYTES;
    if (frame->sequence < search->sequence || frame->sequence > most ||
        !frame_has_known_kind(frame) ||
        frame_bytes(frame->length) > (uint64_t)(search->end - search->offset))
        return 0;
    return check_frame(search, window, sums, frame, found);
}

static void search_on(struct log_search *search, int64_t bytes)
{
    search->offset += bytes;
    search->position += (uint64_t)bytes;
}

/* Go on behind a hole; false if the rest of the file is one. */
static bool pass_hole(struct log_search *search, struct window *window)
{
    if (search->offset < window->data_end)
        return true;
    int64_t data = file_find_data(search->fd, search->offset, search->end);
    if (data == search->end)
        return false;
    search_on(search, (data - search->offset) & ~(int64_t)(FRAME_ALIGNMENT - 1));
    window->data_end = file_find_hole(search->fd, data, search->end);
    if (window->data_end <= data) /* somebody is changing the file */
        window->data_end = window->end;
    return true;
}

/* How many bytes of the next places hold no frame, as far as they are in memory: places where the
 * word that ends a header is 0, and so its kind. */
static int64_t zeros_behind(const struct log_search *search, const struct window *window)
{
    if (!window->bytes)
        return 0; /* nothing was read yet */
    size_t from = (size_t)(search->offset - window->start) + FRAME_HEADER_BYTES, at = from;
    for (uint64_t word = 0; at + sizeof word <= window->filled; at += sizeof word) {
        memcpy(&word, window->bytes + at, sizeof word);
        if (word)
            break;
    }
    return (int64_t)(at - from);
}

int log_search(struct log_search *search)
{
    struct window window = {.fd = search->fd, .end = search->end, .start = -1};
    struct file_sums sums = {.fd = search->fd, .start = search->offset, .end = search->end};
    int error = 0;
    search->last_end = -1;
    while (search->offset < search->end && pass_hole(search, &window)) {
        struct frame frame;
        bool found;
        error = search_at(search, &window, &sums, &frame, &found);
        if (error)
            break;
        if (!found) {
            search_on(search, FRAME_ALIGNMENT + zeros_behind(search, &window));
            continue;
        }
        uint64_t proof = frame_proof(&frame);
        search->records += frame.kind == FRAME_RECORD;
        search->proof = proof > search->proof ? proof : search->proof;
        search->life = frame.life > search->life ? frame.life : search->life;
        if (search->first_only && frame.kind == FRAME_RECORD) {
            search->sequence = frame.sequence;
            break;
        }
        search_on(search, (int64_t)frame_bytes(frame.length));
        search->last_end = search->offset;
    }
    search->summed = sums.summed;
    file_sums_free(&sums);
    free(window.memory);
    return error;
}
