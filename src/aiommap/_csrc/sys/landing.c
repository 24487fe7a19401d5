#include "landing.h"

#include <errno.h>
#include <fcntl.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif
#include <unistd.h>

int landing_open(struct landing *landing)
{
#ifdef __linux__
    landing->readable = landing->writable = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return landing->readable < 0 ? errno : 0;
#else
    int ends[2];
    if (pipe(ends))
        return errno;
    for (int i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
    }
    landing->readable = ends[0];
    landing->writable = ends[1];
    return 0;
#endif
}

void landing_close(struct landing *landing)
{
    close(landing->readable);
    if (landing->writable != landing->readable)
        close(landing->writable);
}

void landing_put(struct landing *landing, struct pool_job *job)
{
    struct pool_job *below = __atomic_load_n(&landing->landed, __ATOMIC_RELAXED);
    do
        job->below = below;
    while (!__atomic_compare_exchange_n(&landing->landed, &below, job, true, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED));
    if (below || __atomic_load_n(&landing->expected, __ATOMIC_SEQ_CST))
        return;
    uint64_t one = 1;
    ssize_t put;
    do
        put = write(landing->writable, &one, sizeof one);
    while (put < 0 && errno == EINTR); /* EAGAIN: it is readable already */
}

void landing_expect(struct landing *landing)
{
    __atomic_store_n(&landing->expected, true, __ATOMIC_SEQ_CST);
}

static void read_descriptor(const struct landing *landing)
{
    uint64_t count;
    while (read(landing->readable, &count, sizeof count) < 0 && errno == EINTR)
        continue;
}

/* Read the descriptor and end the expectation before taking the stack. A job that lands in between
 * is taken too; at worst it makes the descriptor readable for nothing. A job that lands later finds
 * the stack empty and the owner not expected, so it makes the descriptor readable. */
struct pool_job *landing_take(struct landing *landing, bool told)
{
    struct pool_job *in_order = NULL;
    if (told)
        read_descriptor(landing);
    __atomic_store_n(&landing->expected, false, __ATOMIC_SEQ_CST);
    struct pool_job *job = __atomic_exchange_n(&landing->landed, NULL, __ATOMIC_SEQ_CST);
    while (job) {
        struct pool_job *below = job->below;
        job->below = in_order;
        in_order = job;
        job = below;
    }
    return in_order;
}
