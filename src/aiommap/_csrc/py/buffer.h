/* buffer.h: memory of callers that a verb stores or fills.
 *
 * To export a buffer may run Python code of the caller, so check the mapping afterwards
 * (mapping.2).
 */
#ifndef AIOMMAP_PY_BUFFER_H
#define AIOMMAP_PY_BUFFER_H

#include "api.h"

extern PyType_Spec export_spec;

/* Export memory to store, or to fill, until PyBuffer_Release; false with an exception. */
bool buffer_take(PyObject *data, Py_buffer *view, bool writable);
/* The same as an object: bytes as they are, for they cannot change; else a memoryview of bytes. */
PyObject *buffer_export(PyTypeObject *export_type, PyObject *data, bool writable);

#endif
