#include "guard.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "atomics.h"

/* One per thread; touched only by its own thread, in and out of the handler. */
struct jump {
    sigjmp_buf target;
    volatile sig_atomic_t armed;
    uintptr_t dst, src;  /* starts of the two copied ranges */
    size_t length;       /* their common length */
    uintptr_t fault;     /* written by the handler before it jumps */
};

/* initial-exec: the handler must not enter the dynamic TLS allocator. */
static _Thread_local struct jump jump __attribute__((tls_model("initial-exec")));

static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned installs;            /* install_lock */
static struct sigaction previous;    /* written under install_lock before the handler goes live */

static bool within(uintptr_t address, uintptr_t start, size_t length)
{
    return address - start < length; /* wraps to a huge number below start */
}

/* Hand a signal that is not ours to the action that was there before us. */
static void forward(int number, siginfo_t *info, void *context)
{
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(number, info, context);
        return;
    }
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(number);
        return;
    }
    bool sent = info->si_code <= 0; /* by kill() and friends, not by a faulting instruction */
    if (sent && previous.sa_handler == SIG_IGN)
        return;
    /* A fault happens again on return and then meets the default action; a sent signal does not,
     * so it is sent anew. */
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigaction(number, &fatal, NULL);
    if (sent)
        raise(number);
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    uintptr_t address = (uintptr_t)info->si_addr;
    bool ours = info->si_code == BUS_ADRERR &&
                (within(address, jump.dst, jump.length) || within(address, jump.src, jump.length));
    /* A handler that was installed over this one, such as faulthandler's, took the fault, and
     * sends the signal on from within it: then the armed copy is what it interrupted. */
    bool handed_on = info->si_code == SI_TKILL && info->si_pid == getpid();
    if (jump.armed && (ours || handed_on)) {
        jump.armed = 0;
        jump.fault = address;
        siglongjmp(jump.target, 1); /* G2, G3 */
    }
    forward(number, info, context);
}

/* Under the lock. Takes over from nobody, or from whoever put the default back over us, as
 * faulthandler.disable() does; another handler over ours is left alone: it chains to ours. */
static int take_over(void)
{
    struct sigaction current;
    if (sigaction(SIGBUS, NULL, &current))
        return -1;
    bool gone = !(current.sa_flags & SA_SIGINFO) &&
                (current.sa_handler == SIG_DFL || current.sa_handler == SIG_IGN);
    if (installs && !gone)
        return 0;
    /* SA_NODEFER: the jump does not restore the signal mask, so it must never change. */
    struct sigaction ours = {.sa_sigaction = on_sigbus,
                             .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    previous = current;
    return sigaction(SIGBUS, &ours, NULL);
}

int guard_install(void)
{
    pthread_mutex_lock(&install_lock);
    int failed = take_over();
    if (!failed)
        installs++;
    pthread_mutex_unlock(&install_lock);
    return failed;
}

void guard_refresh(void)
{
    pthread_mutex_lock(&install_lock);
    if (installs)
        take_over();
    pthread_mutex_unlock(&install_lock);
}

void guard_remove(void)
{
    pthread_mutex_lock(&install_lock);
    if (--installs == 0) {
        struct sigaction current;
        /* Whoever was installed over us keeps a pointer to our handler; leave the chain whole. */
        if (!sigaction(SIGBUS, NULL, &current) && (current.sa_flags & SA_SIGINFO) &&
            current.sa_sigaction == on_sigbus)
            sigaction(SIGBUS, &previous, NULL);
    }
    pthread_mutex_unlock(&install_lock);
}

/* The guarded region itself (G1). Returns false when it faulted. Kept out of line so that no
 * local of a caller lives across the second return of sigsetjmp. */
static __attribute__((noinline)) bool copy_armed(void *dst, const void *src, size_t n)
{
    jump.dst = (uintptr_t)dst;
    jump.src = (uintptr_t)src;
    jump.length = n;
    if (sigsetjmp(jump.target, 0))
        return false;
    jump.armed = 1;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    memcpy(dst, src, n);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    jump.armed = 0;
    return true;
}

/* memcpy may touch the end of a range first, so after a fault the exact prefix is found by
 * copying again page by page of either side. */
static size_t copy_prefix(char *dst, const char *src, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), done = 0;
    while (done < n) {
        size_t dst_left = page - (uintptr_t)(dst + done) % page;
        size_t src_left = page - (uintptr_t)(src + done) % page;
        size_t step = dst_left < src_left ? dst_left : src_left;
        if (step > n - done)
            step = n - done;
        if (!copy_armed(dst + done, src + done, step))
            break;
        done += step;
    }
    return done;
}

size_t guard_copy(void *dst, const void *src, size_t n, const void **fault)
{
    sigset_t bus, before;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &bus, &before); /* G4 */
    size_t done = n;
    if (!copy_armed(dst, src, n)) {
        done = copy_prefix(dst, src, n);
        if (done < n && fault)
            *fault = (const void *)jump.fault;
    }
    if (sigismember(&before, SIGBUS))
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    return done;
}

/* As copy_armed. */
static __attribute__((noinline)) bool word_armed(struct word_call *call)
{
    jump.dst = jump.src = (uintptr_t)call->at;
    jump.length = call->width;
    if (sigsetjmp(jump.target, 0))
        return false;
    jump.armed = 1;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    word_act(call);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    jump.armed = 0;
    return true;
}

static __attribute__((noinline)) bool word_unblocked(struct word_call *call, bool *blocked)
{
    sigset_t bus, before;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    guard_refresh();
    pthread_sigmask(SIG_UNBLOCK, &bus, &before); /* G4 */
    bool done = word_armed(call);
    *blocked = sigismember(&before, SIGBUS);
    if (*blocked)
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    return done;
}

bool guard_word(struct word_call *call, int64_t tick)
{
    /* The tick at which this thread was last seen with SIGBUS unblocked. */
    static _Thread_local int64_t open_at __attribute__((tls_model("initial-exec"))) = -1;
    if (open_at == tick)
        return word_armed(call);
    bool blocked;
    bool done = word_unblocked(call, &blocked);
    open_at = blocked ? -1 : tick;
    return done;
}
