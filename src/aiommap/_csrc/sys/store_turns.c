/* store_turns.c: see store_turns.h. */
#include "store_turns.h"

#include <pthread.h>
#include <unistd.h>

struct turns {
    pthread_mutex_t mutex;
    pthread_cond_t given;
    int free; /* mutex */
};

static struct turns turns = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 1};
static int most = 1; /* constant once the module is loaded */

/* A forked child has none of the threads that had turns, and the mutex may be locked in it. */
static void begin_in_child(void)
{
    turns = (struct turns){PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, most};
}

__attribute__((constructor)) static void begin(void)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    most = processors > 2 ? (int)processors - 1 : 1;
    turns.free = most;
    pthread_atfork(NULL, NULL, begin_in_child); /* it fails only for want of memory */
}

void store_turn_take(void)
{
    pthread_mutex_lock(&turns.mutex);
    while (!turns.free)
        pthread_cond_wait(&turns.given, &turns.mutex);
    turns.free--;
    pthread_mutex_unlock(&turns.mutex);
}

void store_turn_give(void)
{
    pthread_mutex_lock(&turns.mutex);
    turns.free++;
    pthread_mutex_unlock(&turns.mutex);
    pthread_cond_signal(&turns.given);
}
