/* futex.h: waiting for words to change, and waking those who wait. */
#ifndef AIOMMAP_PY_FUTEX_H
#define AIOMMAP_PY_FUTEX_H

#include "words.h"

extern PyType_Spec wakeup_spec;

/* How many words one call can wait for: futex_waitv(2) takes 128, and one is the Wakeup. */
#define MAX_WAIT_WORDS 127

PyObject *words_notify(Words *self, PyObject *const *args, Py_ssize_t count);

#endif
