/* region.h: address ranges over files, and the system calls on them. Knows nothing of Python.
 *
 * Every function that may wait is meant to be called without the GIL. Functions that can fail
 * return 0 or a positive errno number; those that count return the count, or a negative errno.
 * A call that the platform lacks answers ENOSYS.
 */
#ifndef AIOMMAP_MAPPING_H
#define AIOMMAP_MAPPING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "growth.h"
#include "fault_table.h"

/* No single system call or copy handles more than this, so that each can be interrupted. */
#define PIECE_BYTES ((size_t)4 << 20)

struct region_options { /* the caller's own */
    bool writable;
    bool private_copy;
    bool huge;
    struct damage *damage;
    struct growth *growth; /* NULL unless stores beyond the end of file make it longer */
    struct growth *file;   /* NULL if private */
};

/* One mapped address range. Pages beyond the end of the file are reserved, not backed:
 *
 *   base                     end of file, in a page          base + length
 *    |==== backed by the file ====|-- zeros --|..... faults .....|
 *
 * Shared by the Mapping that made it and by every lease on it; the last one unmaps.
 */
struct region {
    char *base;     /* constant */
    size_t length;  /* constant; whole pages */
    bool writable;  /* constant */
    struct damage *damage; /* constant; what faults did to the file, see sys/fault_table.h */
    struct growth *growth; /* constant; NULL unless stores beyond the end of file make it longer */
    struct entry *entry;   /* constant; its place in the table of watched mappings */
    long holders;   /* GIL */
    long pins;      /* GIL; how many of them are calls without the GIL */
};

size_t page_size(void);

int region_map(struct region **out, int fd, size_t length, const struct region_options *options);
void region_unmap(struct region *region);

/* Lay private zero pages over [offset, end of region), so that leases survive a file that ends
 * there; and put the file back behind [offset, end), no further than it reaches. Both are whole
 * numbers of pages. */
int region_fence(struct region *region, size_t offset);
int region_unfence(struct region *region, int fd, size_t offset, size_t end);

/* Whether a read at this moment need not wait: the whole range, as mincore(2) sees it. */
bool region_is_resident(const struct region *region, size_t offset, size_t length);
/* One flag byte per page of the (page-aligned) range into flags. */
int region_mincore(const struct region *region, size_t offset, size_t length,
                   unsigned char *flags);

/* Make the pages of a range present, at most PIECE_BYTES of it; the number of bytes handled. Where
 * the kernel or a sandbox lacks the call for it, each page is touched. */
ssize_t region_populate(const struct region *region, size_t offset, size_t length, bool write);
int region_advise(const struct region *region, size_t offset, size_t length, int advice);
/* Pin pages: all of them now, or those that are present, and others when they come. */
int region_lock(const struct region *region, size_t offset, size_t length, bool later);
int region_unlock(const struct region *region, size_t offset, size_t length);
int region_sync(const struct region *region, size_t offset, size_t length);

/* Guarded copies in pieces; the exact number of bytes copied. 0 if the mapping is damaged: then it
 * may be zeros that were read, or a page of zeros that took the bytes and keeps them from the file. */
size_t region_copy_out(const struct region *region, size_t offset, char *to, size_t length);
size_t region_copy_in(const struct region *region, size_t offset, const char *from, size_t length);

/* Read what is in the page cache without waiting; -EAGAIN when it is not there. */
ssize_t file_read_nowait(int fd, char *to, size_t length, off_t offset);
/* Read until length or end of file, in pieces. */
ssize_t file_read(int fd, char *to, size_t length, off_t offset);
/* The same of a regular file, and of what was read only what is its own. */
ssize_t file_read_own(int fd, char *to, size_t length, off_t offset);
/* How many of the bytes that were just read the file has had throughout. The kernel looks at the size
 * and then copies; pages that somebody cuts off in between are copied as zeros. Takes 0.2 us and does
 * not wait on a file system that has NOWAIT reads; nobody else uses the descriptor's position. */
size_t file_own(int fd, off_t offset, size_t got);
/* Write pieces one behind the other, which it uses up; the number of bytes written, and why it is
 * short if it is. */
size_t file_write(int fd, struct iovec *pieces, int count, off_t offset, int *error);
/* Whether the file is at least this long, so that a write up to there does not make it longer; and
 * whether it is *solid*, with blocks behind all of its bytes: then none meets a full disk half-way. */
bool file_reaches(int fd, off_t end, bool *solid);
/* Have blocks behind a range of the file, whose bytes they leave as they are. The errno number of a
 * full disk; 0 also where blocks cannot be had but by writing. */
int file_fill_holes(int fd, off_t offset, off_t end);
int file_sync(int fd, bool metadata);
/* What stat(2) would say about a file, without its times. */
struct file_stat { /* the caller's own */
    int64_t size, blocks;
    uint64_t links; /* how many names it has */
};
/* Look at the open file; all zeros when that fails. */
int file_stat(int fd, struct file_stat *out);
int file_start_writeback(int fd, off_t offset, off_t length);
/* When the inode came to be, in nanoseconds; -1 where that is not known. What is below an overlayfs
 * mount is copied up by the first who opens it to write: the same inode number, another birth. */
int64_t file_birth(int fd);
/* Sync everything of the file system that a file is on; ENOSYS where there is no such call. */
int file_system_sync(int fd);
/* The magic number of statfs(2); 0 where there is none. */
int file_system_type(int fd, int64_t *type);
int file_punch_hole(int fd, off_t offset, off_t length);
int file_read_ahead(int fd, off_t offset, size_t length);

/* What cachestat(2) counts, in pages. */
struct cache_counts { /* the caller's own */
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
};
int file_cachestat(int fd, uint64_t offset, uint64_t length, struct cache_counts *out);

#endif
