#include "spare.h"

#include <stddef.h>
#include <sys/mman.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

/* There are several: other threads may take the place of one that the handler gave up, before the
 * handler does. */
enum { SPARES = 8 };

static void *spares[SPARES]; /* atomic */
static int missing = SPARES; /* atomic; a hint */

void spare_keep(void)
{
    if (!__atomic_load_n(&missing, __ATOMIC_RELAXED))
        return;
    for (int i = 0; i < SPARES; i++) {
        if (__atomic_load_n(&spares[i], __ATOMIC_RELAXED))
            continue;
        /* Shared, so that the kernel does not make one mapping of two neighbours; one byte takes a
         * page. */
        void *spare = mmap(NULL, 1, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (spare == MAP_FAILED)
            return;
        void *none = NULL;
        if (__atomic_compare_exchange_n(&spares[i], &none, spare, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            __atomic_fetch_sub(&missing, 1, __ATOMIC_RELAXED);
        else
            munmap(spare, 1); /* another thread was quicker */
    }
}

bool spare_give_up(void)
{
    for (int i = 0; i < SPARES; i++) {
        void *spare = __atomic_exchange_n(&spares[i], NULL, __ATOMIC_ACQ_REL);
        if (!spare)
            continue;
        __atomic_fetch_add(&missing, 1, __ATOMIC_RELAXED);
        munmap(spare, 1);
        return true;
    }
    return false;
}

int spare_count(void)
{
    int count = 0;
    for (int i = 0; i < SPARES; i++)
        count += __atomic_load_n(&spares[i], __ATOMIC_RELAXED) != NULL;
    return count;
}
