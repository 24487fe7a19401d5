/* atomic_word.h: one atomic instruction on one word of memory. Knows nothing of Python.
 *
 * The words are 4 or 8 bytes, aligned to their width, in the byte order of the machine. Every
 * operation is lock-free, so that it also holds against other processes that map the same file.
 */
#ifndef AIOMMAP_ATOMICS_H
#define AIOMMAP_ATOMICS_H

#include <stdbool.h>
#include <stdint.h>

enum word_operation {
    WORD_LOAD,
    WORD_STORE,
    WORD_SWAP,
    WORD_ADD,
    WORD_SUB,
    WORD_AND,
    WORD_OR,
    WORD_XOR,
    WORD_COMPARE, /* store `value` if the word equals `expected` */
};

enum word_order { ORDER_SEQ_CST, ORDER_ACQ_REL, ORDER_ACQUIRE, ORDER_RELEASE, ORDER_RELAXED };

struct word_call { /* the caller's own */
    void *at;
    unsigned width; /* 4 or 8 */
    enum word_operation operation;
    enum word_order order;
    uint64_t value, expected;
    uint64_t seen; /* what the word was before */
};

_Static_assert(__atomic_always_lock_free(4, 0) && __atomic_always_lock_free(8, 0),
               "atomics across processes need native instructions");

/* The part of an order that an operation which only loads, or only stores, can have. */
#define LOAD_PART(order)                                                                          \
    ((order) == __ATOMIC_SEQ_CST                               ? __ATOMIC_SEQ_CST                 \
     : (order) == __ATOMIC_ACQ_REL || (order) == __ATOMIC_ACQUIRE ? __ATOMIC_ACQUIRE              \
                                                               : __ATOMIC_RELAXED)
#define STORE_PART(order)                                                                         \
    ((order) == __ATOMIC_SEQ_CST                               ? __ATOMIC_SEQ_CST                 \
     : (order) == __ATOMIC_ACQ_REL || (order) == __ATOMIC_RELEASE ? __ATOMIC_RELEASE              \
                                                               : __ATOMIC_RELAXED)

/* SAFETY: `at` was checked to be aligned and inside a mapping. The function is inlined with a
 * constant order: for a variable one the compiler would take the strongest. */
#define WORD_FUNCTION(type)                                                                       \
    static inline __attribute__((always_inline)) void word_act_##type(struct word_call *call,     \
                                                                      const int order)            \
    {                                                                                             \
        type *at = call->at, value = (type)call->value, seen = 0;                                 \
        switch (call->operation) {                                                                \
        case WORD_LOAD: seen = __atomic_load_n(at, LOAD_PART(order)); break;                      \
        case WORD_STORE: __atomic_store_n(at, value, STORE_PART(order)); break;                   \
        case WORD_SWAP: seen = __atomic_exchange_n(at, value, order); break;                      \
        case WORD_ADD: seen = __atomic_fetch_add(at, value, order); break;                        \
        case WORD_SUB: seen = __atomic_fetch_sub(at, value, order); break;                        \
        case WORD_AND: seen = __atomic_fetch_and(at, value, order); break;                        \
        case WORD_OR: seen = __atomic_fetch_or(at, value, order); break;                          \
        case WORD_XOR: seen = __atomic_fetch_xor(at, value, order); break;                        \
        case WORD_COMPARE:                                                                        \
            /* Load it first: the instruction makes the page dirty even if it fails. */           \
            seen = __atomic_load_n(at, LOAD_PART(order));                                         \
            if (seen == (type)call->expected)                                                     \
                __atomic_compare_exchange_n(at, &seen, value, false, order, LOAD_PART(order));    \
            break;                                                                                \
        }                                                                                         \
        call->seen = seen;                                                                        \
    }
WORD_FUNCTION(uint32_t)
WORD_FUNCTION(uint64_t)
#undef WORD_FUNCTION

#define WORD_IN_ORDER(type, call)                                                                 \
    switch ((call)->order) {                                                                      \
    case ORDER_SEQ_CST: word_act_##type(call, __ATOMIC_SEQ_CST); break;                           \
    case ORDER_ACQ_REL: word_act_##type(call, __ATOMIC_ACQ_REL); break;                           \
    case ORDER_ACQUIRE: word_act_##type(call, __ATOMIC_ACQUIRE); break;                           \
    case ORDER_RELEASE: word_act_##type(call, __ATOMIC_RELEASE); break;                           \
    case ORDER_RELAXED: word_act_##type(call, __ATOMIC_RELAXED); break;                           \
    }

static inline void word_act(struct word_call *call)
{
    if (call->width == sizeof(uint32_t))
        WORD_IN_ORDER(uint32_t, call)
    else
        WORD_IN_ORDER(uint64_t, call)
}

#endif
