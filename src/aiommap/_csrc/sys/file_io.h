/* file_io.h: system calls on the descriptor of a file. Knows nothing of Python.
 *
 * Each may wait, unless its comment says otherwise, and is called without the GIL. A function that
 * can fail returns 0 or a positive errno number; one that counts returns the count, or a negative
 * errno number. A call that the platform lacks answers ENOSYS.
 */
#ifndef AIOMMAP_FILE_IO_H
#define AIOMMAP_FILE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Read what is in the page cache without waiting; -EAGAIN when it is not there. */
ssize_t file_read_nowait(int fd, char *to, size_t length, off_t offset);
/* Read `length` bytes, or up to the end of the file, in pieces. */
ssize_t file_read(int fd, char *to, size_t length, off_t offset);
/* The same for a regular file; only the bytes that the file has had throughout count. */
ssize_t file_read_own(int fd, char *to, size_t length, off_t offset);
/* How many of the bytes that were just read the file has had throughout. The kernel checks the size
 * and then copies; of pages that somebody cuts off in between it copies zeros. Takes 0.2 us, and
 * does not wait on a file system that has NOWAIT reads. It moves the position of the descriptor,
 * which nobody else uses. */
size_t file_own(int fd, off_t offset, size_t got);
/* Write pieces one behind the other, and use them up. Returns the number of bytes written; *error
 * says why it is short, if it is. */
size_t file_write(int fd, struct iovec *pieces, int count, off_t offset, int *error);
size_t file_write_one(int fd, const char *from, size_t length, off_t offset, int *error);
/* Whether the file is at least this long, so that a write up to there does not make it longer; and
 * whether it is *solid*, with blocks behind all of its bytes: then no write meets a full disk
 * half-way. */
bool file_reaches(int fd, off_t end, bool *solid);
/* Allocate blocks for the holes in a range of the file, without changing its bytes. Returns the
 * errno number of a full disk, or 0, also where only writing allocates blocks. */
int file_fill_holes(int fd, off_t offset, off_t end);
/* Where the file ends, asked as in file_own; -1 if that cannot be told. */
int64_t file_size(int fd);
/* The first byte of data, or of a hole, in [offset, end); `end` if there is none. Where the file system
 * cannot tell, everything is data. */
int64_t file_find_data(int fd, int64_t offset, int64_t end);
int64_t file_find_hole(int fd, int64_t offset, int64_t end);
/* Whether a range is a hole throughout, or a part of one that has blocks reserved: nothing of it would
 * have to be read from the disk. And whether there is no hole in it. Both wait for the inode's lock. */
bool file_is_hole(int fd, off_t offset, off_t end);
bool file_has_blocks(int fd, off_t offset, off_t end);
int file_sync(int fd, bool metadata);
/* What stat(2) would say about a file, without its times. */
struct file_stat { /* the caller's own */
    int64_t size, blocks;
    uint64_t links; /* how many names it has */
};
/* Look at the open file; all zeros when that fails. */
int file_stat(int fd, struct file_stat *out);
int file_start_writeback(int fd, off_t offset, off_t length);
/* When the inode came to be, in nanoseconds; -1 if that is not known. The first one who opens a
 * file of the lower layer of an overlayfs to write makes the kernel copy it up: it keeps its inode
 * number, and has another birth. */
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
