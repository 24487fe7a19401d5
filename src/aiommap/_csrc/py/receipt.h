/* receipt.h: Receipt, proof of one write. */
#ifndef AIOMMAP_PY_RECEIPT_H
#define AIOMMAP_PY_RECEIPT_H

#include "mapping.h"

extern PyType_Spec receipt_spec;

/* Make the receipt of a write; NULL with an exception. */
PyObject *receipt_make(const Mapping *mapping, int64_t offset, int64_t length, uint64_t sequence);

#endif
