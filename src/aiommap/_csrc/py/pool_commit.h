/* pool_commit.h: PoolCommit, a call that stores or makes durable in a thread of the pool.
 *
 * The loop thread checks and counts everything before it begins one. A thread of the pool makes the
 * call. Then `outcome` counts again: on the loop thread, or earlier in another thread that waited
 * for the call because it wants to change the same file. A call that was begun is never taken back.
 */
#ifndef AIOMMAP_PY_POOL_COMMIT_H
#define AIOMMAP_PY_POOL_COMMIT_H

#include "pool_object.h"
#include "state.h"

extern PyType_Spec pool_commit_spec;

struct commit_kind { /* constant */
    void (*run)(void *call);                   /* in a thread of the pool, without the GIL */
    bool (*succeeded)(const void *call);       /* once it has run: nothing unusual is left to do */
    PyObject *(*end)(void *call);              /* count; the outcome, or NULL with an exception */
    void (*release)(void *call);               /* give up what it holds, ended or not */
};

/* Have a thread make a call, whose memory is of PyMem_Malloc; the loop thread then calls `tell`
 * with the PoolCommit, and then what that returns, unless it is None. Returns None if the pool cannot, NULL with an exception: in both cases the
 * call stays the caller's. */
PyObject *pool_commit_begin(const struct native_state *state, PyObject *queue,
                            const struct commit_kind *kind, void *call, PyObject *tell);

#endif
