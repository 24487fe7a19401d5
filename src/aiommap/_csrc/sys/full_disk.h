/* full_disk.h: the errors of a full disk. Knows nothing of Python. */
#ifndef AIOMMAP_FULL_DISK_H
#define AIOMMAP_FULL_DISK_H

#include <errno.h>
#include <stdbool.h>

/* Whether an errno number says that there is no room: on the disk, for a user, or for a process. */
static inline bool is_full(int error)
{
    return error == ENOSPC || error == EDQUOT || error == EFBIG;
}

#endif
