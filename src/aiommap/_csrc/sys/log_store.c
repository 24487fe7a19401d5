/* log_store.c: see log_store.h. */
#include "log_store.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include "atomic_word.h"
#include "file_io.h"
#include "guard.h"

#define WINDOW_BYTES ((size_t)1 << 20)

static bool store_word(char *page, enum control_word word, unsigned width, uint64_t value,
                       enum word_operation operation, int64_t tick)
{
    /* SAFETY: constants below CONTROL_BYTES, which the caller has mapped; guarded. */
    struct word_call call = {.at = page + word,
                             .width = width,
                             .operation = operation,
                             .order = ORDER_SEQ_CST,
                             .value = value};
    return guard_word(&call, tick);
}

bool control_store(char *page, enum control_word word, uint64_t value, int64_t tick)
{
    return store_word(page, word, 8, value, WORD_STORE, tick);
}

bool control_wake(char *page, int64_t tick)
{
    if (!store_word(page, CONTROL_FUTEX, 4, 1, WORD_ADD, tick))
        return false;
#ifdef __linux__
    syscall(SYS_futex, page + CONTROL_FUTEX, 1 /* FUTEX_WAKE */, INT_MAX, NULL, NULL, 0);
#endif
    return true;
}

bool control_publish(char *page, const struct published *published, int64_t tick)
{
    /* Places before sequences: who sees a record's number finds the record. */
    bool reached = control_store(page, CONTROL_TAIL, published->tail, tick) &&
                   control_store(page, CONTROL_LAST_SEQUENCE, published->last_sequence, tick);
    if (reached && published->durable)
        reached = control_store(page, CONTROL_DURABLE, published->durable, tick) &&
                  control_store(page, CONTROL_DURABLE_SEQUENCE, published->last_sequence, tick);
    return reached && control_wake(page, tick);
}

int segment_sync(int fd, int64_t end)
{
    /* Without the times: who is told of them has the next write change them, in a block of its own
     * with each commit. */
    struct file_stat found;
    int error = file_sync(fd, false);
    if (!error)
        error = file_stat(fd, &found);
    if (error)
        return error;
    return found.size < end ? EIO : found.links == 0 ? ESTALE : 0;
}

/* What is in memory of a segment, [start, start + filled). */
struct window { /* the caller's own */
    int fd;
    char *bytes;
    size_t room, filled;
    int64_t start, end; /* end: of what may be read */
    int64_t data_end;   /* no hole lies before it */
};

/* Find out where a hole begins, at an offset or behind it. */
static void find_hole(struct window *window, int64_t offset)
{
    window->data_end = window->end;
#ifdef SEEK_HOLE
    off_t hole = lseek(window->fd, offset, SEEK_HOLE);
    if (hole >= 0 && hole < window->end)
        window->data_end = hole;
#endif
}

/* Have `length` bytes from `offset` in memory, or fewer where the file ends; *available says how
 * many. Returns an errno number.
 *
 * What is not asked for is read only up to the next hole: there reading leaves pages of zeros, which
 * SEEK_DATA takes for data from then on, so that a search would read all the room that is reserved. */
static int window_at(struct window *window, int64_t offset, size_t length, size_t *available)
{
    size_t most = offset < window->end ? (size_t)(window->end - offset) : 0;
    if (length > most)
        length = most;
    if (offset < window->start || offset + (int64_t)length > window->start + (int64_t)window->filled) {
        if (length > window->room || !window->bytes) {
            size_t room = length > WINDOW_BYTES ? length : WINDOW_BYTES;
            char *bytes = realloc(window->bytes, room);
            if (!bytes)
                return ENOMEM;
            window->bytes = bytes;
            window->room = room;
        }
        if (offset >= window->data_end)
            find_hole(window, offset);
        size_t ahead = offset < window->data_end ? (size_t)(window->data_end - offset) : 0;
        size_t wanted = ahead < window->room ? ahead : window->room;
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
    free(window.bytes);
    return error;
}

/* Whether there is a good frame at the offset, of whatever sequence and life; its length. */
static int search_at(struct log_search *search, struct window *window, struct frame *frame,
                     bool *found)
{
    size_t available = 0;
    *found = false;
    if (window->data_end - search->offset < FRAME_HEADER_BYTES)
        return 0; /* its kind would lie in the hole */
    int error = window_at(window, search->offset, FRAME_HEADER_BYTES, &available);
    if (error || available < FRAME_HEADER_BYTES)
        return error;
    frame_header(window_bytes(window, search->offset), frame);
    struct frame_place place = {.salt = search->salt,
                                .position = search->position,
                                .sequence = frame->sequence,
                                .life = frame->life};
    /* No more records than fit can lie before it; without this, random bytes would have most of the
     * file summed again and again. */
    uint64_t most =
        search->base + (uint64_t)(search->offset - SEGMENT_HEADER_BYTES) / FRAME_HEADER_BYTES;
    if (frame->sequence < search->sequence || frame->sequence > most ||
        !frame_is_plausible(frame, &place) ||
        frame_bytes(frame->length) > (uint64_t)(search->end - search->offset))
        return 0;
    error = window_at(window, search->offset, (size_t)frame_bytes(frame->length), &available);
    if (!error)
        *found = frame_decode(window_bytes(window, search->offset), available, &place, frame) ==
                 FRAME_FITS;
    return error;
}

static void search_on(struct log_search *search, int64_t bytes)
{
    search->offset += bytes;
    search->position += (uint64_t)bytes;
}

/* Go on behind what was never written; false if nothing was from here on. */
static bool pass_hole(struct log_search *search, struct window *window)
{
    int64_t data = search->offset;
    if (data < window->data_end)
        return true;
#ifdef SEEK_DATA
    data = lseek(search->fd, data, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return false;
    if (data < search->offset)
        data = search->offset; /* the file system cannot tell */
    search_on(search, (data - search->offset) & ~(int64_t)(FRAME_ALIGNMENT - 1));
#endif
    find_hole(window, data);
    if (window->data_end <= data) /* somebody changes the file */
        window->data_end = window->end;
    return true;
}

/* How many of the next places hold no frame, as far as is in memory: where the word that ends a header
 * is 0, as its kind then is, too. */
static int64_t zeros_behind(const struct log_search *search, const struct window *window)
{
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
    int error = 0;
    search->last_end = -1;
    while (search->offset < search->end && pass_hole(search, &window)) {
        struct frame frame;
        bool found;
        error = search_at(search, &window, &frame, &found);
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
    free(window.bytes);
    return error;
}
