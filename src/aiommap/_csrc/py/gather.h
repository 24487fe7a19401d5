/* gather.h: stores of tasks that woke together, gathered for a turn of the loop and stored as one.
 *
 * Tasks that waited for one flush wake in one turn. If each of them then writes where the one
 * before it ended, as tasks do that append records side by side, a pwrite(2) for each is most of
 * what a durable record costs: the kernel walks the whole folio each time (docs/decisions.md). So
 * in such a turn the stores are gathered: their tasks give way once, and the first task that goes
 * on stores them all.
 *
 * Invariants.
 *   1  A store is gathered only if it could run inline at once, by pwrite(2), and its verb returns only
 *      after it was applied.
 *   2  While any is gathered, no other store runs inline: inline verbs and words decline, and their
 *      slow way first has the gathered ones stored, or queued (I9).
 *   3  A store that is withdrawn before it was applied is never applied (I8).
 */
#ifndef AIOMMAP_PY_GATHER_H
#define AIOMMAP_PY_GATHER_H

#include "mapping.h"

/* Take note of a store of the loop thread, to know whether most of them adjoin. */
static inline void gather_note(Mapping *self, int64_t offset, int64_t end)
{
    self->gather.stores++;
    self->gather.adjoining += offset == self->gather.last_end;
    self->gather.last_end = end;
}

int gather_traverse(Mapping *self, visitproc visit, void *arg);
void gather_clear(Mapping *self);

PyObject *mapping_expect_stores(Mapping *self, PyObject *count);
PyObject *mapping_gather(Mapping *self, PyObject *const *args, Py_ssize_t count);
PyObject *mapping_store_gathered(Mapping *self, PyObject *unused);
PyObject *mapping_withdraw(Mapping *self, PyObject *receipt);
PyObject *mapping_gathers(Mapping *self, PyObject *args);

#endif
