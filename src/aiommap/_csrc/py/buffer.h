/* buffer.h: memory of callers that is stored, or filled.
 *
 * To ask for a buffer may run the caller's code, so check the mapping afterwards (mapping.2).
 */
#ifndef AIOMMAP_PY_BUFFER_H
#define AIOMMAP_PY_BUFFER_H

#include "api.h"

extern PyType_Spec export_spec;

/* Export memory to store, or to fill, until PyBuffer_Release; false with an exception. */
bool buffer_take(PyObject *data, Py_buffer *view, bool writable);
/* The same as an object: bytes that cannot change as they are, else a memoryview of bytes. */
PyObject *buffer_export(PyTypeObject *export_type, PyObject *data, bool writable);

#endif
