/* receipt.h: Receipt, proof of one write. */
#ifndef AIOMMAP_PY_RECEIPT_H
#define AIOMMAP_PY_RECEIPT_H

#include "mapping.h"
#include "state.h"

extern PyType_Spec receipt_spec;

/* Make the receipt of a write; NULL with an exception. */
PyObject *receipt_make(const Mapping *mapping, int64_t offset, int64_t length, uint64_t sequence);
/* Give the receipt of a gathered write its number, which was 0. */
void receipt_number(PyObject *receipt, uint64_t sequence);
/* Whether an object is a receipt that no flush of its own range has made durable; *sequence is its
 * number. */
bool receipt_awaits(const struct native_state *state, PyObject *object, uint64_t *sequence);
/* The ranges of a list of receipts or of (start, end), for PyMem_Free; NULL with an exception. */
struct run *receipt_runs(const struct native_state *state, PyObject *list, Py_ssize_t *count);

#endif
