/* pin.h: what keeps region and descriptor alive while a thread has let the GIL go. */
#ifndef AIOMMAP_PY_PIN_H
#define AIOMMAP_PY_PIN_H

#include "mapping.h"

/* What a verb may use while it does not hold the GIL. */
struct pin { /* the caller's own; written by pin.c */
    Mapping *mapping;
    struct region *region;
    int fd;
    uint64_t generation; /* when the pin began */
    bool moved;          /* when it ended: there was a change, or one is under way (mapping.2) */
};

/* All of these need the GIL. */
void pin_begin(struct pin *pin, Mapping *mapping);
void pin_end(struct pin *pin);
/* The same, with a reference to the mapping, for a job that its caller does not wait for.
 * pin_let_go does nothing if it was called before, or if the pin is all zeros. */
void pin_hold(struct pin *pin, Mapping *mapping);
void pin_let_go(struct pin *pin);
/* Take over a descriptor that pin_end would close; -1 if it would close none, or no more of
 * them. */
int pin_take_descriptor(struct pin *pin);
/* Pin another region of the same mapping in place of this one. */
void pin_instead(struct pin *pin, struct region *region);
/* In a forked child, before closing: end the pins of threads that exist only in the parent. */
void forget_pins(Mapping *self);
void region_retain(struct region *region);
void region_release(struct region *region); /* NULL is allowed */
void descriptor_close(int fd);

/* What became of a range while the GIL was away; for a verb that failed (mapping.2). */
enum meanwhile {
    RANGE_SAME,  /* nothing happened to it: the verb failed for a reason of its own */
    RANGE_MOVED, /* there was a change, and the range is still inside: repeat the call */
    RANGE_GONE,  /* the range is outside; there is an exception */
};
enum meanwhile pin_meanwhile(const struct pin *pin, int64_t offset, int64_t length);

/* Run a statement without the GIL, and keep a pin meanwhile. */
#define WITHOUT_GIL(pin, mapping, statement)                                                      \
    do {                                                                                          \
        pin_begin(&(pin), (mapping));                                                             \
        Py_BEGIN_ALLOW_THREADS                                                                    \
        statement;                                                                                \
        Py_END_ALLOW_THREADS                                                                      \
        pin_end(&(pin));                                                                          \
    } while (0)

#endif
