/* landing.h: where jobs of the pool go that have run, and how their owner learns of them. Knows
 * nothing of Python.
 *
 * A thread puts its job on a stack. If the stack was empty, the thread makes a descriptor readable,
 * unless the owner is *expected*: then the owner will look at the stack without being told.
 */
#ifndef AIOMMAP_LANDING_H
#define AIOMMAP_LANDING_H

#include "pool_turns.h"

struct landing { /* written by landing.c */
    int readable, writable;  /* constant; one eventfd, or the two ends of a pipe */
    struct pool_job *landed; /* atomic; the newest one first */
    bool expected;           /* atomic */
};

/* 0 or an errno number. */
int landing_open(struct landing *landing);
void landing_close(struct landing *landing);

/* For any thread. The owner may free the job before this returns, but not the landing. */
void landing_put(struct landing *landing, struct pool_job *job);

/* For the owner: pool_expect and pool_landed. */
void landing_expect(struct landing *landing);
struct pool_job *landing_take(struct landing *landing, bool told);

#endif
