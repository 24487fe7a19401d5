/* log_frame.c: see log_frame.h. */
#include "log_frame.h"

#include <string.h>

#include "crc32c.h"

/* Where the fields of a frame's header lie. */
enum { AT_CRC = 0, AT_LENGTH = 4, AT_SEQUENCE = 8, AT_LIFE = 16, AT_CLAIM = 20, AT_KIND = 23 };

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LITTLE32(value) __builtin_bswap32(value)
#define LITTLE64(value) __builtin_bswap64(value)
#else
#define LITTLE32(value) (value)
#define LITTLE64(value) (value)
#endif

static void put32(char *to, uint32_t value)
{
    value = LITTLE32(value);
    memcpy(to, &value, sizeof value);
}

static void put64(char *to, uint64_t value)
{
    value = LITTLE64(value);
    memcpy(to, &value, sizeof value);
}

static uint32_t get32(const char *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return LITTLE32(value);
}

static uint64_t get64(const char *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return LITTLE64(value);
}

/* It covers salt and position, and then the header without the checksum itself. */
uint32_t frame_header_checksum(const char *header, const struct frame_place *place)
{
    char covered[16 + FRAME_HEADER_BYTES - AT_LENGTH];
    put64(covered, place->salt);
    put64(covered + 8, place->position);
    memcpy(covered + 16, header + AT_LENGTH, FRAME_HEADER_BYTES - AT_LENGTH);
    return crc32c(0, covered, sizeof covered);
}

uint32_t frame_checksum(const char *header, const void *data, size_t length,
                        const struct frame_place *place)
{
    static const char zeros[FRAME_ALIGNMENT];
    size_t padding = (size_t)frame_bytes(length) - FRAME_HEADER_BYTES - length;
    uint32_t crc = crc32c(frame_header_checksum(header, place), data, length);
    return crc32c(crc, zeros, padding);
}

void frame_encode(char *to, const struct frame *frame, const struct frame_place *place,
                  const void *data)
{
    size_t body = (size_t)frame_bytes(frame->length) - FRAME_HEADER_BYTES;
    put32(to + AT_LENGTH, frame->length);
    put64(to + AT_SEQUENCE, frame->sequence);
    put32(to + AT_LIFE, frame->life);
    put32(to + AT_CLAIM, frame->claim | (uint32_t)frame->kind << 24);
    if (frame->length)
        memcpy(to + FRAME_HEADER_BYTES, data, frame->length);
    memset(to + FRAME_HEADER_BYTES + frame->length, 0, body - frame->length);
    /* Sum the copy: somebody else may store into the source meanwhile. */
    put32(to + AT_CRC, crc32c(frame_header_checksum(to, place), to + FRAME_HEADER_BYTES, body));
}

void frame_header(const char *from, struct frame *frame)
{
    uint32_t claim_and_kind = get32(from + AT_CLAIM);
    frame->crc = get32(from + AT_CRC);
    frame->length = get32(from + AT_LENGTH);
    frame->sequence = get64(from + AT_SEQUENCE);
    frame->life = get32(from + AT_LIFE);
    frame->claim = claim_and_kind & CLAIM_NONE;
    frame->kind = (uint8_t)(claim_and_kind >> 24);
}

bool frame_has_known_kind(const struct frame *frame)
{
    return (frame->kind >= FRAME_RECORD && frame->kind <= FRAME_DISCARD) ||
           frame->kind >= FRAME_SKIPPED;
}

bool frame_is_plausible(const struct frame *frame, const struct frame_place *place)
{
    return frame_has_known_kind(frame) && frame->sequence == place->sequence &&
           frame->life >= place->life;
}

enum frame_verdict frame_begin(const char *from, size_t available,
                               const struct frame_place *place, struct frame *frame)
{
    if (available < FRAME_HEADER_BYTES)
        return FRAME_INCOMPLETE;
    frame_header(from, frame);
    if (!frame_is_plausible(frame, place))
        return FRAME_WRONG;
    return available < frame_bytes(frame->length) ? FRAME_INCOMPLETE : FRAME_FITS;
}

enum frame_verdict frame_check(const char *from, const struct frame_place *place,
                               const struct frame *frame)
{
    uint32_t crc = crc32c(frame_header_checksum(from, place), from + FRAME_HEADER_BYTES,
                          (size_t)frame_bytes(frame->length) - FRAME_HEADER_BYTES);
    return crc == frame->crc ? FRAME_FITS : FRAME_WRONG;
}

enum frame_verdict frame_copy(void *to, const char *from, const struct frame_place *place,
                              const struct frame *frame)
{
    const char *data = from + FRAME_HEADER_BYTES;
    size_t padding = (size_t)frame_bytes(frame->length) - FRAME_HEADER_BYTES - frame->length;
    uint32_t crc = crc32c_copy(frame_header_checksum(from, place), to, data, frame->length);
    return crc32c(crc, data + frame->length, padding) == frame->crc ? FRAME_FITS : FRAME_WRONG;
}

enum frame_verdict frame_decode(const char *from, size_t available,
                                const struct frame_place *place, struct frame *frame)
{
    enum frame_verdict verdict = frame_begin(from, available, place, frame);
    return verdict == FRAME_FITS ? frame_check(from, place, frame) : verdict;
}
