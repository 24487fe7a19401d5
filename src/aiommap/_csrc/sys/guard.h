/* guard.h: copies, atomic operations on one word, and foreign loads and stores, that survive SIGBUS.
 *
 * This header and sys/guard.c know nothing of Python: nothing Pythonic can run in a guarded region.
 *
 * Terms. A *guarded region* is the time between arming the calling thread's jump target and
 * disarming it. A *fault* is SIGBUS with BUS_ADRERR: the page at that address has no file behind it
 * (truncated), no room behind it (disk full) or an unreadable device behind it; or with
 * BUS_MCEERR_AR: its memory is broken. BUS_MCEERR_AO is no fault: nobody touched the page, and the
 * kernel sends it only to processes that asked to die early.
 *
 * Invariants.
 *   1  Only a memcpy, or one atomic operation, runs in a guarded region.
 *   2  The handler jumps only in a guarded region: if the fault meets one of the two ranges in use,
 *      or if a handler above ours sends the signal on.
 *   3  The jump target is thread-local: a fault never leaves its own thread.
 *   4  SIGBUS is unblocked while a thread is in a guarded region. The kernel kills a thread that
 *      faults with SIGBUS blocked, whatever handler there is.
 *   5  When a fault happens outside a guarded region, at an address of the fault table, the handler
 *      lays a page of zeros under it, and the code goes on. The handler notes the damage before it
 *      lays the page, so code that has stored into such a page finds the damage noted. In a region
 *      that grows, sys/growth.h says what becomes of the fault. At the kernel's limit on mappings
 *      sys/spare.h makes room.
 *   6  Every other SIGBUS goes to the handler that was installed before ours. Each time we put our
 *      handler on top of another one, it gets an entry point of its own, a *level*. A level hands
 *      on to the handler below it. So the chain leads only downward, whoever calls whom.
 *   7  The handler calls only functions that are safe in a signal handler, and preserves errno.
 *      POSIX does not list mmap(2) as safe; in the C libraries of Linux it is no more than the
 *      system call.
 *   8  A jump leaves the thread with the signal mask and the alternate stack that it had before the
 *      fault. A handler on top of ours, which called ours, may have changed both.
 */
#ifndef AIOMMAP_GUARD_H
#define AIOMMAP_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct word_call;

/* Install the handler. Installs are counted: each needs a guard_remove. 0, or -1 with errno. */
int guard_install(void);
void guard_remove(void);
/* Put the handler back on top if somebody has reset SIGBUS, or has installed another handler over
 * it. This is cheap enough for every hop. */
void guard_refresh(void);

/* Copy n bytes and return how many were copied: n, or the exact length of the prefix before the
 * page that faulted. Either side may be mapped; the two must not overlap. After a fault, *fault is
 * the address that could not be reached. The handler must be installed. */
size_t guard_copy(void *dst, const void *src, size_t n, const void **fault);

/* Run one operation of sys/atomic_word.h on a word; false if its page cannot be reached, and then
 * nothing was stored. `tick` is the value of a clock that moves every few milliseconds. Each thread
 * looks at the handler and at its signal mask once a tick: the two system calls cost more than ten
 * operations on a word. */
bool guard_word(struct word_call *call, int64_t tick);

/* Whether the calling thread blocks SIGBUS, so that it would not survive a foreign load that
 * faults. */
bool guard_is_blocked(void);

#endif
