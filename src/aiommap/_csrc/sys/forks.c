#include "forks.h"

#include <pthread.h>

unsigned long fork_generation;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int error; /* written once, in start */

static void count_fork(void)
{
    fork_generation++;
}

static void start(void)
{
    error = pthread_atfork(NULL, NULL, count_fork);
}

int forks_count(void)
{
    pthread_once(&once, start);
    return error;
}
