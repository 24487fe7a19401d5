/* pool_await.h: a PoolRead in the place of a future of asyncio.
 *
 * A task of asyncio waits for any object that has these methods of a future. A future has the loop
 * call a function, in its next turn, which wakes the task; a PoolRead wakes it out of `drain`. For
 * each read that saves a future, a handle, two calls of Python, and the turns of the garbage
 * collector that they cause (docs/decisions).
 *
 * Invariants.
 *   1  One task waits for a PoolRead, in the coroutine that began it.
 *   2  A task is woken at once only out of `drain`, which the loop has called, so that no other
 *      task runs. Whoever cancels, withdraws or begins reads may be a task; then the loop wakes the
 *      one that waits. So it does in debug mode, where the loop names what ran for too long.
 *   3  A PoolRead is no container for the garbage collector. It keeps what wakes a task no longer
 *      than it has jobs in flight, and so does not keep the task.
 */
#ifndef AIOMMAP_PY_POOL_AWAIT_H
#define AIOMMAP_PY_POOL_AWAIT_H

#include "pool_object.h"

extern PyMethodDef pool_read_methods[];

/* Give the outcome to the task that waits, if there is one. With `now` it runs, and what ends the
 * program leaves it as the exception that is pending then. */
void pool_read_answer(PoolRead *self, const Pool *pool, PyObject *outcome, bool now);
/* Nobody waits any more. */
void pool_read_leave(PoolRead *self);

PyObject *pool_read_await(PoolRead *self);
PyObject *pool_read_next(PoolRead *self);
PySendResult pool_read_send(PoolRead *self, PyObject *value, PyObject **result);

#endif
