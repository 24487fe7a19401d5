/* awaited.h: Awaited, the base of what a task of asyncio awaits in the place of a future.
 *
 * A task of asyncio waits for any object that has these methods of a future. A future has the loop
 * call a function, in its next turn, which wakes the task; an Awaited can wake it at once. For each
 * wait that saves a future, a handle, two calls of Python, and the turns of the garbage collector
 * that they cause (docs/decisions).
 *
 * Invariants.
 *   1  One task waits for an Awaited, in the coroutine that began it.
 *   2  A task is woken at once only where no other task runs: out of a function that the loop has
 *      called. Whoever cancels, withdraws or begins something may be a task; then the loop wakes the
 *      one that waits. So it does in debug mode, where the loop names what ran for too long.
 *   3  It keeps what wakes a task until it is answered or nobody waits any more.
 */
#ifndef AIOMMAP_PY_AWAITED_H
#define AIOMMAP_PY_AWAITED_H

#include "api.h"

extern PyType_Spec awaited_spec;

typedef struct {
    PyObject_HEAD

    /* GIL; written by awaited.c. */
    PyObject *loop, *call_soon; /* strong; of the task; NULL once this is over */
    PyObject *wake, *context;   /* strong; wakes the task, and in which context; or NULL */
    PyObject *outcome;          /* strong; until the task has it; or NULL */
    PyObject *message;          /* strong; of a cancellation; or NULL */
    bool raises;                /* the outcome is an exception to raise */
    bool blocking;              /* as of a future: awaited, and the task has not seen it yet */
    bool cancelled;
    bool over;                  /* answered, or nobody waits any more */
} Awaited;

/* Let tasks of a loop wait; `call_soon` is a method of the loop. */
void awaited_begin(Awaited *self, PyObject *loop, PyObject *call_soon);
/* Give the outcome to the task that waits, if there is one. With `now` it runs, and what ends the
 * program leaves it: then false with that exception. */
bool awaited_answer(Awaited *self, PyObject *outcome, bool raises, bool now);
/* Nobody waits any more. */
void awaited_leave(Awaited *self);
/* For the dealloc and the traverse of a subtype. */
void awaited_clear(Awaited *self);
int awaited_visit(Awaited *self, visitproc visit, void *arg);

#endif
