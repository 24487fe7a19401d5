/* inline_way.h: which way a store of the loop thread takes.
 *
 * A store through the mapping costs least, but it makes the next flush expensive: it dirties the
 * whole folio, up to two megabytes, where pwrite(2) dirties one block. So a store is a pwrite(2)
 * for as long as a flush can be expected, and goes through the mapping where nobody flushes
 * (docs/decisions.md).
 */
#ifndef AIOMMAP_PY_INLINE_WAY_H
#define AIOMMAP_PY_INLINE_WAY_H

#include "mapping.h"
#include "pin.h"

/* Which way a store of the loop thread takes. For a worker's store, way_of in write.c decides. */
enum inline_way {
    WAY_WORKER,      /* it would wait: a page is not in memory, or our flush is writing it, which
                        makes a store wait for milliseconds (docs/decisions.md) */
    WAY_DESCRIPTOR,  /* by pwrite(2), without the GIL, for it enters the file system. Pages that are
                      * not in memory have to be holes, which nothing reads from the disk. */
    WAY_MAPPING,     /* through the mapping, without the GIL: the first store to a clean page enters
                        the file system. Nothing tells whether the kernel has made a page clean. */
    WAY_WITH_GIL,    /* through the mapping: no file system is involved, as the pages are private, or
                        on tmpfs */
};

enum inline_way inline_way_of(Mapping *self, int64_t offset, int64_t length, int64_t now);

/* Without the GIL. Whether pwrite(2) will neither read a page from the disk nor find the disk full
 * half-way. The kernel applies a store to one page whole or not at all; one to several pages has to
 * find the blocks of all. *cached says that the pages are known to be in memory; it is set if this
 * finds them there. */
bool pwrite_is_inline(const struct pin *pin, int64_t offset, int64_t end, bool *cached);

#endif
