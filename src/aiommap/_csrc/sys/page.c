#include "page.h"

#include <unistd.h>

unsigned page_shift;

static __attribute__((constructor)) void find_page_size(void)
{
    page_shift = (unsigned)__builtin_ctzl((unsigned long)sysconf(_SC_PAGESIZE));
}
