/* atomics.h: words of a mapping with atomic operations, and waiting for them to change. */
#ifndef AIOMMAP_PY_ATOMICS_H
#define AIOMMAP_PY_ATOMICS_H

#include "mapping.h"

/* One word, or an array of them. It knows the mapping and an offset, never an address: resizing
 * may move the mapping. */
typedef struct {
    PyObject_HEAD
    Mapping *mapping; /* constant, strong */
    PyObject *policy;   /* constant, strong; asked where native code does not go on by itself */
    int64_t offset;   /* constant; of the first word; a multiple of width */
    int64_t count;    /* constant; how many words */
    unsigned width;   /* constant; bytes a word, 4 or 8 */
    bool indexed;     /* constant; its methods take the number of the word first */
} Words;

/* How many words one call can wait for: futex_waitv(2) takes 128, and one is the Wakeup. */
#define MAX_WAIT_WORDS 127

/* Raise what the policy says against an operation at `at`, as the mapping is at this moment; true
 * when it says nothing and an address may be formed (I3). */
bool words_allowed(const Words *self, int64_t at, bool store);
/* Whether the page of the word at `at` is in memory, as far as can be told; what it does then is a
 * moment's work. */
bool words_present(const Words *self, int64_t at, int64_t now);
/* A clock that is read in a few nanoseconds and advances every few milliseconds. */
int64_t coarse_clock(void);

PyObject *words_notify(Words *self, PyObject *const *args, Py_ssize_t count); /* py/futex.c */

#endif
