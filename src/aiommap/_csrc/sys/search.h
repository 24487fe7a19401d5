/* search.h: finding bytes in bytes, in time that grows with their number and no faster. Knows nothing
 * of Python. */
#ifndef AIOMMAP_SEARCH_H
#define AIOMMAP_SEARCH_H

#include <stddef.h>
#include <sys/types.h>

/* Where the needle, of one byte or more, occurs first; -1 if nowhere. */
ssize_t search_first(const char *in, size_t length, const char *needle, size_t count);
/* Where it occurs last; -1 if nowhere, -2 when out of memory. */
ssize_t search_last(const char *in, size_t length, const char *needle, size_t count);

#endif
