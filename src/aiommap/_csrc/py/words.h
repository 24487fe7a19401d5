/* words.h: atomic operations on words of a mapping. */
#ifndef AIOMMAP_PY_WORDS_H
#define AIOMMAP_PY_WORDS_H

#include "mapping.h"

#include "../sys/atomic_word.h"

/* One word, or an array of them. It has the mapping and an offset, never an address: resizing may
 * move the mapping. */
typedef struct {
    PyObject_HEAD
    Mapping *mapping; /* constant, strong */
    PyObject *policy; /* constant, strong; decides what native code cannot */
    int64_t offset;   /* constant; of the first word; a multiple of width */
    int64_t count;    /* constant; how many words */
    unsigned width;   /* constant; bytes a word, 4 or 8 */
    bool indexed;     /* constant; its methods take the number of the word first */
} Words;

/* Have the policy raise the error that forbids an operation at `at`. True if nothing forbids it:
 * then an address may be formed (I3). */
bool words_allowed(const Words *self, int64_t at, bool store);
/* Whether the page of the word at `at` is known to be in memory. */
bool words_present(const Words *self, int64_t at, int64_t now);
/* Run an operation on the word at `at`; false with an exception. */
bool words_operate(const Words *self, int64_t at, struct word_call *call);

#endif
