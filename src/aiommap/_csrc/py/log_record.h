/* log_record.h: LogRecord and LogReceipt, the bases of what a log hands out. */
#ifndef AIOMMAP_PY_LOG_RECORD_H
#define AIOMMAP_PY_LOG_RECORD_H

#include "api.h"

extern PyType_Spec log_record_spec, log_receipt_spec;

/* Both make an object of a subtype. This one takes over the reference to the data. */
PyObject *log_record_make(PyTypeObject *type, uint64_t sequence, uint32_t life, PyObject *data);
PyObject *log_receipt_make(PyTypeObject *type, PyObject *owner, uint64_t sequence,
                           Py_ssize_t count);
/* Whether an object is a type of receipts, for a type of the module; false with an exception. */
bool log_is_receipt_type(PyTypeObject *asking, PyObject *type);

#endif
