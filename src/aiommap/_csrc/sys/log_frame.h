/* log_frame.h: frames of a log's segments; knows nothing of Python, and makes no system call.
 * docs/log_format.md has the byte tables.
 */
#ifndef AIOMMAP_LOG_FRAME_H
#define AIOMMAP_LOG_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEGMENT_HEADER_BYTES 4096
#define FRAME_HEADER_BYTES 24
#define FRAME_ALIGNMENT 8
/* The claim of a frame that claims nothing. */
#define CLAIM_NONE 0xFFFFFFu

enum frame_kind { FRAME_RECORD = 1, FRAME_OPEN, FRAME_END, FRAME_DISCARD, FRAME_SKIPPED = 0x80 };

struct frame { /* the caller's own */
    uint64_t sequence;
    uint32_t crc, length, life, claim;
    uint8_t kind;
};

/* Where a frame has to lie, and what has to come there. */
struct frame_place { /* the caller's own */
    uint64_t salt;     /* of the segment */
    uint64_t position; /* of the frame, among all bytes of the log */
    uint64_t sequence; /* of the next record */
    uint32_t life;     /* lives below it are over */
};

enum frame_verdict {
    FRAME_FITS,
    FRAME_INCOMPLETE, /* more bytes are needed: a whole header, or frame_bytes of it */
    FRAME_WRONG,      /* no frame of this place */
};

static inline uint64_t frame_bytes(uint64_t length)
{
    return FRAME_HEADER_BYTES + ((length + FRAME_ALIGNMENT - 1) & ~(uint64_t)(FRAME_ALIGNMENT - 1));
}

/* What a frame says was durable when it was stored: all records up to this one; 0 for none. */
static inline uint64_t frame_proof(const struct frame *frame)
{
    return frame->claim == CLAIM_NONE || frame->claim > frame->sequence
               ? 0
               : frame->sequence - frame->claim;
}

/* Lay a frame out, frame_bytes(length) long, with the crc that this computes. */
void frame_encode(char *to, const struct frame *frame, const struct frame_place *place,
                  const void *data);
/* Read the header alone; nothing is checked. */
void frame_header(const char *from, struct frame *frame);
bool frame_has_known_kind(const struct frame *frame);
/* Whether a header can be the one of a place, the checksum aside. */
bool frame_is_plausible(const struct frame *frame, const struct frame_place *place);
/* The checksum of a frame as far as its header goes; its data and padding continue it. */
uint32_t frame_header_checksum(const char *header, const struct frame_place *place);
/* The checksum of a frame of which header, data and padding may lie apart. */
uint32_t frame_checksum(const char *header, const void *data, size_t length,
                        const struct frame_place *place);
/* Read the header of the frame at the beginning of some bytes: FRAME_FITS if it can be the one of the
 * place and all of it is there; its checksum is left for frame_check, or for frame_copy, which checks
 * a frame while it copies its data. */
enum frame_verdict frame_begin(const char *from, size_t available,
                               const struct frame_place *place, struct frame *frame);
enum frame_verdict frame_check(const char *from, const struct frame_place *place,
                               const struct frame *frame);
enum frame_verdict frame_copy(void *to, const char *from, const struct frame_place *place,
                              const struct frame *frame);
/* Check the frame at the beginning of some bytes: frame_begin and frame_check. */
enum frame_verdict frame_decode(const char *from, size_t available,
                                const struct frame_place *place, struct frame *frame);

#endif
