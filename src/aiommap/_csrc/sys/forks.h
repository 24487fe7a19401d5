/* forks.h: whether this process is a forked child of the one that made an object. Knows nothing of
 * Python. */
#ifndef AIOMMAP_FORKS_H
#define AIOMMAP_FORKS_H

/* Grows in each forked child, in its only thread; written by forks.c. */
extern unsigned long fork_generation;

/* Count forks from now on; 0 or an errno number. */
int forks_count(void);

#endif
