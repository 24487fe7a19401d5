/* guard.h: copies, atomic operations on one word, and foreign loads and stores, that survive SIGBUS.
 *
 * This header and sys/guard.c know nothing of Python: nothing Pythonic can run in a guarded region.
 *
 * Terms. A *guarded region* is the time between arming the calling thread's jump target and
 * disarming it. A *fault* is SIGBUS with BUS_ADRERR: the page at that address has no file behind
 * it (truncated), no room behind it (disk full) or an unreadable device behind it; or with
 * BUS_MCEERR_AR: its memory is broken. BUS_MCEERR_AO is no fault: nobody touched the page, and only
 * processes that asked to die early are sent it.
 *
 * Invariants.
 *   1  Only a memcpy, or one atomic operation, runs in a guarded region.
 *   2  The handler jumps only for a fault whose page meets one of the two ranges in use.
 *   3  The jump target is thread-local: a fault never leaves its own thread.
 *   4  SIGBUS is unblocked while a thread is in a guarded region. The kernel kills a thread that
 *      faults with SIGBUS blocked, whatever handler there is.
 *   5  A fault outside of a guarded region, at an address of the fault table, gets a page of zeros
 *      laid under it and goes on. The handler notes the damage before it lays the page, so code that
 *      has stored into such a page finds the damage noted. Where the mapping grows, sys/growth.h says
 *      what becomes of the fault. At the kernel's limit on mappings sys/spare.h makes room.
 *   6  Every other SIGBUS goes to the handler that was installed before ours. Each time our handler
 *      is put on top of another one it gets an entry point of its own, a level, which hands on to the
 *      handler below that level. So the chain leads only downward, whoever calls whom.
 *   7  The handler calls only what is safe in a signal handler, and preserves errno. mmap(2) is not
 *      on the list of POSIX; in Linux libraries it is no more than the system call.
 *   8  A jump leaves the thread with the signal mask and the alternate stack that it had before the
 *      fault. A handler on top of ours, which called ours, may have changed both.
 */
#ifndef AIOMMAP_GUARD_H
#define AIOMMAP_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct word_call;

/* Install the handler; counted, so every call needs its guard_remove. 0, or -1 with errno. */
int guard_install(void);
void guard_remove(void);
/* Put the handler back on top if somebody has reset SIGBUS, or installed over it, since; cheap
 * enough for every hop. */
void guard_refresh(void);

/* Copy n bytes and return how many were copied: n, or the exact length of the prefix before the
 * page that faulted. Either side may be mapped; the two must not overlap. *fault, if a fault
 * happened, is the address that could not be reached. The handler must be installed. */
size_t guard_copy(void *dst, const void *src, size_t n, const void **fault);

/* Run one operation of sys/atomic_word.h on a word; false if its page cannot be reached, and then nothing
 * was stored. `tick` is a clock of a few milliseconds: handler and signal mask are looked at once a
 * tick in each thread, as two system calls would cost more than ten of these. */
bool guard_word(struct word_call *call, int64_t tick);

/* Whether the calling thread blocks SIGBUS, so that a foreign load in it cannot survive. */
bool guard_is_blocked(void);

#endif
