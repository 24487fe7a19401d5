/* runs.h: byte ranges of a file, in C and as Python's lists of (start, end). */
#ifndef AIOMMAP_PY_RUNS_H
#define AIOMMAP_PY_RUNS_H

#include "api.h"

/* Bytes [start, end) of the file. */
struct run { /* the caller's own */
    int64_t start, end;
};

/* Nobody forms an address before this has returned true (I3). */
static inline bool range_is_valid(int64_t offset, int64_t length, int64_t limit)
{
    return offset >= 0 && length >= 0 && offset <= limit && length <= limit - offset;
}

static inline bool runs_overlap(int64_t start, int64_t end, int64_t other_start, int64_t other_end)
{
    return start < other_end && other_start < end;
}

/* [(start, end), ...]; NULL with an exception. */
PyObject *list_of_runs(const struct run *runs, Py_ssize_t count);
/* The runs of such a list, for PyMem_Free; NULL with an exception. May run Python code. */
struct run *runs_of(PyObject *list, Py_ssize_t *count);

#endif
