/* gate.c: a preloaded library that holds, fails or slows system calls of the process, so that a test can
 * decide what happens in the middle of a native step. The list at the end has the names of the calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char armed[32], failing[32], slow[32], slow_way[32];
static atomic_int is_armed, fails_in, reached, is_open, gate_after, fails_with, once;
static atomic_int slow_calls, slow_microseconds;
static void (*_Atomic act_before)(void);

/* Hold the next such call, before it is made or after. */
void gate_arm(const char *name, int after)
{
    strncpy(armed, name, sizeof armed - 1);
    atomic_store(&reached, 0);
    atomic_store(&is_open, 0);
    atomic_store(&gate_after, after);
    atomic_store(&is_armed, 1);
}

static void rest(void) { nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL); }

/* Wait at most ten seconds until a call is held; whether one is. */
int gate_reached(void)
{
    for (int tries = 0; !atomic_load(&reached) && tries < 100000; tries++)
        rest();
    return atomic_load(&reached);
}

void gate_open(void) { atomic_store(&is_open, 1); }

/* Fail the nth such call from now on, and with `on` all calls after it. */
void gate_fail(const char *name, int nth, int error, int on)
{
    strncpy(failing, name, sizeof failing - 1);
    atomic_store(&fails_with, error);
    atomic_store(&once, !on);
    atomic_store(&fails_in, nth);
}

/* How many such calls are left until one fails; 0 once it did. */
int gate_left(void) { return atomic_load(&fails_in); }

/* Call `act` before the next such call is made. */
void gate_before(const char *name, void (*act)(void))
{
    strncpy(armed, name, sizeof armed - 1);
    atomic_store(&act_before, act);
    atomic_store(&is_armed, 1);
}

/* Let the next such calls take this long: "asleep", "running", or "without the processor", for which
 * another process has to want the processor. */
void gate_slow(const char *name, int calls, int microseconds, const char *way)
{
    strncpy(slow, name, sizeof slow - 1);
    strncpy(slow_way, way, sizeof slow_way - 1);
    atomic_store(&slow_microseconds, microseconds);
    atomic_store(&slow_calls, calls);
}

static long nanoseconds_since(clockid_t clock, const struct timespec *begun)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (now.tv_sec - begun->tv_sec) * 1000000000 + now.tv_nsec - begun->tv_nsec;
}

static void take_long(long wanted)
{
    struct timespec begun, ran;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ran);
    if (!strcmp(slow_way, "asleep"))
        nanosleep(&(struct timespec){.tv_nsec = wanted}, NULL);
    else if (!strcmp(slow_way, "running"))
        while (nanoseconds_since(CLOCK_THREAD_CPUTIME_ID, &ran) < wanted)
            ;
    else
        while (nanoseconds_since(CLOCK_MONOTONIC, &begun) <
               wanted + 4 * nanoseconds_since(CLOCK_THREAD_CPUTIME_ID, &ran))
            sched_yield();
}

static void slow_down(const char *name)
{
    if (!atomic_load(&slow_calls) || strcmp(name, slow))
        return;
    atomic_fetch_sub(&slow_calls, 1);
    take_long(atomic_load(&slow_microseconds) * 1000L);
}

static int takes(const char *name)
{
    int yes = 1;
    return atomic_load(&is_armed) && !strcmp(name, armed) &&
           atomic_compare_exchange_strong(&is_armed, &yes, 0);
}

static void hold(void)
{
    void (*act)(void) = atomic_exchange(&act_before, NULL);
    if (act) {
        act();
        return;
    }
    atomic_store(&reached, 1);
    while (!atomic_load(&is_open))
        rest();
}

static int fails(const char *name)
{
    if (!atomic_load(&fails_in) || strcmp(name, failing))
        return 0;
    if (atomic_load(&fails_in) > 1 && atomic_fetch_sub(&fails_in, 1) > 1)
        return 0;
    if (atomic_load(&once))
        atomic_store(&fails_in, 0);
    errno = atomic_load(&fails_with);
    return 1;
}

#define GATED(type, function, name, when, failure, parameters, ...)                               \
    type function parameters                                                                      \
    {                                                                                             \
        static type(*real) parameters;                                                            \
        if (!real)                                                                                \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #function);                               \
        if (!(when))                                                                              \
            return real(__VA_ARGS__);                                                             \
        int held = takes(name), after = atomic_load(&gate_after);                                 \
        if (held && !after)                                                                       \
            hold();                                                                               \
        slow_down(name);                                                                          \
        if (fails(name))                                                                          \
            return failure;                                                                       \
        type result = real(__VA_ARGS__);                                                          \
        int error = errno;                                                                        \
        if (held && after)                                                                        \
            hold();                                                                               \
        errno = error;                                                                            \
        return result;                                                                            \
    }

#define FENCE (MAP_FIXED | MAP_ANONYMOUS)
#define MMAP(function)                                                                            \
    GATED(void *, function,                                                                       \
          (f & FENCE) == FENCE ? "fence" : f & MAP_FIXED ? "unfence" : "map",                     \
          (f & FENCE) == FENCE || fd >= 0, MAP_FAILED,                                            \
          (void *a, size_t n, int p, int f, int fd, off_t o), a, n, p, f, fd, o)
#define VECTOR(function)                                                                          \
    GATED(ssize_t, function, "pwritev", 1, -1, (int fd, const struct iovec *v, int n, off_t o),   \
          fd, v, n, o)
#define PWRITE(function)                                                                          \
    GATED(ssize_t, function, "pwrite", 1, -1, (int fd, const void *b, size_t n, off_t o), fd, b,  \
          n, o)
MMAP(mmap)
MMAP(mmap64)
GATED(ssize_t, writev, "writev", 1, -1, (int fd, const struct iovec *v, int n), fd, v, n)
PWRITE(pwrite)
PWRITE(pwrite64)
VECTOR(pwritev)
VECTOR(pwritev64)
GATED(int, fdatasync, "fdatasync", 1, -1, (int fd), fd)
GATED(int, ftruncate, "ftruncate", 1, -1, (int fd, off_t n), fd, n)
GATED(int, ftruncate64, "ftruncate", 1, -1, (int fd, off_t n), fd, n)
GATED(int, fallocate, "fallocate", 1, -1, (int fd, int m, off_t o, off_t n), fd, m, o, n)
GATED(int, fallocate64, "fallocate", 1, -1, (int fd, int m, off_t o, off_t n), fd, m, o, n)
GATED(int, posix_fallocate, "reserve", 1, errno, (int fd, off_t o, off_t n), fd, o, n)
GATED(int, posix_fallocate64, "reserve", 1, errno, (int fd, off_t o, off_t n), fd, o, n)
GATED(ssize_t, pread, "pread", 1, -1, (int fd, void *b, size_t n, off_t o), fd, b, n, o)
GATED(ssize_t, pread64, "pread", 1, -1, (int fd, void *b, size_t n, off_t o), fd, b, n, o)
GATED(int, pthread_create, "thread", 1, errno,
      (pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *g), t, a, f, g)
GATED(int, madvise, "populate", h == 22 || h == 23, -1, (void *a, size_t n, int h), a, n, h)
GATED(int, mincore, "mincore", 1, -1, (void *a, size_t n, unsigned char *v), a, n, v)
GATED(int, mlock2, "mlock2", 1, -1, (const void *a, size_t n, unsigned f), a, n, f)
GATED(int, munmap, "munmap", 1, -1, (void *a, size_t n), a, n)
