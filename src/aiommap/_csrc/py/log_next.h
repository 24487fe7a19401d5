/* log_next.h: what __anext__ of a cursor returns while records are granted.
 *
 * An async function would make a coroutine for each record and run it, which takes four times as
 * long as decoding a small one. A LogNext takes the record when it is awaited, and not before: a
 * task that is cancelled until then has lost nothing. If none is granted by then, the LogNext does
 * what the coroutine would.
 */
#ifndef AIOMMAP_PY_LOG_NEXT_H
#define AIOMMAP_PY_LOG_NEXT_H

#include "api.h"

extern PyType_Spec log_next_spec;

/* What a LogNext asks of the cursor. */
struct log_grants { /* constant */
    /* Take a granted record; NULL without an exception if Python has to look. */
    PyObject *(*take)(PyObject *cursor);
    /* Keep a LogNext that is over, and does not refer to the cursor any more. */
    void (*keep)(PyObject *cursor, PyObject *next);
};

/* Make one, or take the one that the cursor has to spare if nobody else has it; a new reference. */
PyObject *log_next_make(PyTypeObject *type, PyObject **spare, PyObject *cursor,
                        const struct log_grants *grants);

#endif
