/* api.h: Python.h as all of py/ includes it, and what every object needs. */
#ifndef AIOMMAP_PY_API_H
#define AIOMMAP_PY_API_H

#include <pyconfig.h>
/* The stable ABI of Python 3.11, so that one wheel serves all later versions; by measurement it
 * costs the inline verbs nothing (docs/decisions.md). Free-threaded builds have no stable ABI that
 * we could use. */
#ifndef Py_GIL_DISABLED
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

/* The last step of every tp_dealloc. */
void object_free(void *self);
/* Set the OSError of an errno number as the exception; returns NULL. */
PyObject *os_error(int number);

#endif
