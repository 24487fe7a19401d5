/* region.h: address ranges over files, and the system calls on them. Knows nothing of Python.
 *
 * Every function that may wait is meant to be called without the GIL. Functions that can fail
 * return 0 or a positive errno number; those that count return the count, or a negative errno.
 * A call that the platform lacks answers ENOSYS.
 */
#ifndef AIOMMAP_REGION_H
#define AIOMMAP_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "fault_table.h"
#include "growth.h"
#include "page.h"

struct region_options { /* the caller's own */
    bool writable;
    bool private_copy;
    bool huge;
    struct damage *damage;
    struct growth *growth; /* NULL unless stores beyond the end of file make it longer */
    struct growth *file;   /* that of the file, also if it never grows; NULL if private */
};

/* One mapped address range. Pages beyond the end of the file are reserved, not backed:
 *
 *   base                     end of file, in a page          base + length
 *    |==== backed by the file ====|-- zeros --|..... faults .....|
 *
 * Shared by the Mapping that made it and by every lease on it; the last reference unmaps it.
 */
struct region {
    /* Constant. */
    char *base;
    size_t length; /* whole pages */
    bool writable;
    struct damage *damage; /* what faults did to the file, see sys/fault_table.h */
    struct growth *growth; /* NULL unless stores beyond the end of file make it longer */
    struct entry *entry;   /* its place in the fault table */

    /* GIL; written by pin.c. */
    long references;
    long pins; /* how many of them are calls without the GIL */
};

int region_map(struct region **out, int fd, size_t length, const struct region_options *options);
void region_unmap(struct region *region);

/* Lay private zero pages over [offset, end of region), so that leases survive a file that ends
 * there. region_unfence puts the file back behind [offset, end), no further than the file reaches.
 * Both offsets are multiples of a page. */
int region_fence(struct region *region, size_t offset);
int region_unfence(struct region *region, int fd, size_t offset, size_t end);

/* Whether the whole range is in memory, as mincore(2) sees it, so that a read at this moment need
 * not wait. */
bool region_is_resident(const struct region *region, size_t offset, size_t length);
/* Fill in one flag byte for each page of a range that is aligned to pages, as mincore(2) does. */
int region_mincore(const struct region *region, size_t offset, size_t length,
                   unsigned char *flags);

/* Make the pages of a range present, at most PIECE_BYTES of it. Returns the number of bytes
 * handled. Where the kernel or a sandbox lacks the call for it, this touches each page. */
ssize_t region_populate(const struct region *region, size_t offset, size_t length, bool write);
int region_advise(const struct region *region, size_t offset, size_t length, int advice);
/* Lock pages in memory: all of them now or, with `later`, those that are present, and others when
 * they come. */
int region_lock(const struct region *region, size_t offset, size_t length, bool later);
int region_unlock(const struct region *region, size_t offset, size_t length);
int region_sync(const struct region *region, size_t offset, size_t length);

/* Guarded copies in pieces. They return the exact number of bytes copied. 0 if the mapping is
 * damaged: then the copy may have read zeros, or stored into a page of zeros that never reaches the
 * file. */
size_t region_copy_out(const struct region *region, size_t offset, char *to, size_t length);
size_t region_copy_in(const struct region *region, size_t offset, const char *from, size_t length);

#endif
