/* append.h: making a file longer beside other processes that do so. Knows nothing of Python. */
#ifndef AIOMMAP_APPEND_H
#define AIOMMAP_APPEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* What was appended. */
struct appended { /* the caller's own */
    int64_t start; /* where it begins */
    size_t put;    /* how many bytes; they follow one another */
    int error;     /* why the append stopped there; 0 if it is whole */
};

/* How many pieces one call appends at most: as many as every kernel takes, with one left for
 * zeros. */
enum { APPEND_PIECES = 1023 };

/* Append pieces in one write(2), through a descriptor with O_APPEND that nobody else uses: only
 * then the position of the descriptor tells where the bytes went. An append that stops short is not
 * cut off again: others may have appended behind it. */
void append_shared(int fd, const struct iovec *pieces, int count, struct appended *out);

/* Make the file at least this long, and never cut off what others append meanwhile. Reserves blocks
 * for what it adds, unless that is to be sparse, and finds a full disk before the length changes. 0
 * or an errno number. */
int append_zeros_to(int fd, int64_t length, bool sparse);

#endif
