#include "search.h"

#include <stdlib.h>
#include <string.h>

ssize_t search_first(const char *in, size_t length, const char *needle, size_t count)
{
    const char *found =
        count == 1 ? memchr(in, *needle, length) : memmem(in, length, needle, count);
    return found ? found - in : -1;
}

static void reverse(char *to, const char *from, size_t length)
{
    for (size_t i = 0; i < length; i++)
        to[i] = from[length - 1 - i];
}

/* No C library searches backwards in linear time; reversed, the last place is the first one. */
ssize_t search_last(const char *in, size_t length, const char *needle, size_t count)
{
    if (count > length)
        return -1;
    char *turned = malloc(length + count);
    if (!turned)
        return -2;
    reverse(turned, in, length);
    reverse(turned + length, needle, count);
    ssize_t found = search_first(turned, length, turned + length, count);
    free(turned);
    return found < 0 ? -1 : (ssize_t)(length - count) - found;
}
