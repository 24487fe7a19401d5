/* state.h: what the module keeps: its types, an exception of the package, and names of methods. */
#ifndef AIOMMAP_PY_STATE_H
#define AIOMMAP_PY_STATE_H

#include "api.h"

struct native_state { /* constant once the module has been executed */
    PyTypeObject *mapping_type, *lease_type, *receipt_type;
    PyTypeObject *word_type, *word_array_type, *wakeup_type, *export_type;
    PyTypeObject *blocks_type;
    PyTypeObject *log_record_type, *log_next_type, *log_cursor_type, *log_writer_type;
    PyTypeObject *log_receipt_type, *log_wait_type, *log_gather_type;
    PyTypeObject *awaited_type;
    PyTypeObject *pool_type, *pool_queue_type, *pool_read_type, *pool_commit_type;
    PyObject *out_of_bounds; /* OutOfBoundsError */
    PyObject *done, *set_result, *run; /* names of methods, of a waiter and of a context, interned */
};

#endif
