#include "pool_calls.h"

#include <unistd.h>

#include "file_io.h"
#include "page.h"

static struct pool_read *of(struct pool_job *job) { return (struct pool_read *)job; }

void pool_read_start(struct pool_job *job)
{
    struct pool_read *read = of(job);
    file_read_nowait(read->fd, read->to, read->length, read->offset);
}

void pool_read_own(struct pool_job *job)
{
    struct pool_read *read = of(job);
    read->got = file_read_own(read->fd, read->to, read->length, read->offset);
}

void pool_read_plain(struct pool_job *job)
{
    struct pool_read *read = of(job);
    read->got = file_read(read->fd, read->to, read->length, read->offset);
}

void pool_read_ahead(struct pool_job *job)
{
    struct pool_read *read = of(job);
    for (size_t done = 0; done < read->length; done += PIECE_BYTES) {
        size_t left = read->length - done;
        if (file_read_ahead(read->fd, read->offset + (off_t)done, left < PIECE_BYTES ? left : PIECE_BYTES))
            break; /* only a hint: a read meets the same error, and reports it */
    }
    read->got = 0;
}

void pool_close(struct pool_job *job)
{
    close(of(job)->fd);
    of(job)->got = 0;
}
