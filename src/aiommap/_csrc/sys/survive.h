/* survive.h: how a foreign load or store at a lost page goes on (guard.5). For the SIGBUS handler.
 * Knows nothing of Python. */
#ifndef AIOMMAP_SURVIVE_H
#define AIOMMAP_SURVIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Make the faulting instruction succeed when it runs again. `lost` is the size of the block of lost
 * memory around the address: a power of two, at least a page. False if the address is not in the fault
 * table, or nothing can be done. */
bool survive_fault(uintptr_t address, size_t lost);

#endif
