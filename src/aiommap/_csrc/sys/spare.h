/* spare.h: mappings kept back for when the kernel allows no more. Knows nothing of Python.
 *
 * A process may have vm.max_map_count mappings, and a page laid into one of them takes up to two
 * more. The kernel must not refuse one to the SIGBUS handler. So the handler gives up one of these
 * and takes its place. These functions are safe in a signal handler, and in several threads at
 * once.
 */
#ifndef AIOMMAP_SPARE_H
#define AIOMMAP_SPARE_H

#include <stdbool.h>

/* Fill up the spares, as far as the kernel allows; cheap when none is missing. */
void spare_keep(void);
/* Unmap one; false if there was none. */
bool spare_give_up(void);
int spare_count(void);

#endif
