/* survive.h: a foreign load or store at a lost page goes on (guard.5). For the SIGBUS handler, and without
 * Python. */
#ifndef AIOMMAP_SURVIVE_H
#define AIOMMAP_SURVIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Make the faulting instruction succeed when it happens again, whose address lies in a block of lost
 * memory of this size: a power of two, at least a page. False if the address is nobody's who asked to
 * be watched, or nothing can be done. */
bool survive_fault(uintptr_t address, size_t lost);

#endif
