#include "guard.h"
#include "growth.h"
#include "watched.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "atomics.h"

/* One per thread; touched only by its own thread, in and out of the handler. Kept small: what a
 * library takes of a thread's static block others lack, and a jump target has 312 bytes on arm64. */
struct jump {
    sigjmp_buf *target; /* on the stack of whoever armed it */
    volatile sig_atomic_t armed;
    uintptr_t dst, src;  /* starts of the two copied ranges */
    size_t length;       /* their common length */
    uintptr_t fault;     /* of the last fault that the handler saw */
    uintptr_t retried;   /* page that was there after all when the handler last looked, or 0 */
};

/* initial-exec: the handler must not enter the dynamic TLS allocator. musl has none, as loading a
 * library allots its part to all threads, and loads no library that asks for initial-exec. */
#ifdef __GLIBC__
#define PER_THREAD _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define PER_THREAD _Thread_local
#endif

static PER_THREAD struct jump jump;

enum { LEVELS = 4 };

/* So many faults of one file get a page each, from then on all that follows goes at once: a hole is
 * a mapping of its own, and at vm.max_map_count of them the kernel refuses the next. */
enum { SINGLE_PAGES = 64 };

static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned installs;              /* install_lock */
static int highest = -1;               /* install_lock; the level installed last that is in use */
static struct sigaction below[LEVELS]; /* written under install_lock before its level goes live */
static uintptr_t page;                 /* written under install_lock before the handler goes live */

/* A forked child has one thread, so nobody would ever release a lock that another one held. */
static void lock_installs(void) { pthread_mutex_lock(&install_lock); }
static void unlock_installs(void) { pthread_mutex_unlock(&install_lock); }
static pthread_once_t forks = PTHREAD_ONCE_INIT;
static void follow_forks(void)
{
    pthread_atfork(lock_installs, unlock_installs, unlock_installs);
}

/* Whether the block of lost memory around an address meets a range. The address alone may lie just
 * outside: for broken memory the kernel names the first byte of the block, and arm64 any byte of
 * the page when a wide vector instruction faulted (FAR not precise). */
static bool meets(uintptr_t address, size_t lost, uintptr_t start, size_t length)
{
    uintptr_t block = address - address % lost;
    return block - start < length || (length && start - block < lost); /* below 0 it wraps: huge */
}

/* Hand a signal that is not ours to the action that was there before us. */
static void forward(const struct sigaction *previous, int number, siginfo_t *info, void *context)
{
    if (previous->sa_flags & SA_SIGINFO) {
        previous->sa_sigaction(number, info, context);
        return;
    }
    if (previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN) {
        previous->sa_handler(number);
        return;
    }
    bool sent = info->si_code <= 0; /* by kill() and friends, not by a faulting instruction */
    if (sent && previous->sa_handler == SIG_IGN)
        return;
    /* A fault happens again on return and then meets the default action; a sent signal does not,
     * so it is sent anew. */
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigaction(number, &fatal, NULL);
    if (sent)
        raise(number);
}

static bool map_zeros(const struct watched *mapping, uintptr_t start, uintptr_t end)
{
    /* SAFETY: [start, end) lies in the watched mapping, which stays as long as the thread that
     * faulted in it (M1), so nothing of anybody else's is mapped over. */
    return mmap((void *)start, end - start, mapping->protection,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

static void note_damage(struct damage *damage, uint64_t offset, int error)
{
    int unset = 0;
    uint64_t none = DAMAGE_NONE;
    /* SAFETY: the first fault wins, whichever thread it struck; and the reason goes in before the
     * place, so that who sees that there is damage finds out why. */
    __atomic_compare_exchange_n(&damage->error, &unset, error ? error : EFAULT, false,
                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    __atomic_compare_exchange_n(&damage->first_bad, &none, offset, false, __ATOMIC_SEQ_CST,
                                __ATOMIC_SEQ_CST);
}

/* Lay zeros at [offset, offset + span), or from there to the end. */
static bool lay_zeros(const struct watched *mapping, uintptr_t offset, size_t span)
{
    uintptr_t start = mapping->base + offset, end = mapping->base + mapping->length;
    return (span && map_zeros(mapping, start, end - start < span ? end : start + span)) ||
           map_zeros(mapping, start, end);
}

/* Whether a fault in a growable region just has to happen again; if not, why its page is lost. */
static bool has_grown(const struct watched *mapping, uintptr_t offset, bool *beyond, int *error)
{
    uintptr_t before = jump.retried;
    jump.retried = 0;
    switch (growth_reach(mapping->growth, (int64_t)offset, (int64_t)mapping->length, error)) {
    case GROWTH_AGAIN:
        return true;
    case GROWTH_THERE:
        jump.retried = mapping->base + offset;
        return jump.retried != before;
    case GROWTH_BEYOND:
        *beyond = true;
        return false;
    default:
        return false;
    }
}

/* G5. False if the address is nobody's who asked to be watched. */
static bool survive(uintptr_t address, size_t span)
{
    struct watched mapping;
    if (!find_watched(address, &mapping))
        return false;
    int saved = errno, error = 0;
    uintptr_t offset = address - mapping.base;
    offset -= offset % span;
    bool beyond = false;
    bool done = mapping.growth && has_grown(&mapping, offset, &beyond, &error);
    if (!done && beyond) {
        done = lay_zeros(&mapping, offset, 0);
    } else if (!done) {
        note_damage(mapping.damage, offset, error);
        uint64_t faults = __atomic_fetch_add(&mapping.damage->faults, 1, __ATOMIC_RELAXED);
        done = lay_zeros(&mapping, offset, faults < SINGLE_PAGES ? span : 0);
    }
    errno = saved;
    return done;
}

/* Where the thread faulted last, also when this is another signal; 0 where nobody tells. */
static uintptr_t last_fault(const ucontext_t *context)
{
#if defined(__linux__) && defined(__x86_64__)
    return (uintptr_t)context->uc_mcontext.gregs[REG_CR2];
#elif defined(__linux__) && defined(__aarch64__)
    return (uintptr_t)context->uc_mcontext.fault_address;
#else
    (void)context;
    return 0;
#endif
}

static bool is_sent_by_us(const siginfo_t *info)
{
#ifdef SI_TKILL
    return info->si_code == SI_TKILL && info->si_pid == getpid();
#else
    (void)info;
    return false;
#endif
}

/* How much memory a fault made unusable; 0 if the signal is not one. */
static size_t lost_by(const siginfo_t *info)
{
#ifdef BUS_MCEERR_AR
    if (info->si_code == BUS_MCEERR_AR) {
        size_t broken = (size_t)1 << info->si_addr_lsb;
        return broken > page ? broken : page;
    }
#endif
    return info->si_code == BUS_ADRERR ? page : 0;
}

static void on_sigbus(int level, int number, siginfo_t *info, void *context)
{
    uintptr_t address = (uintptr_t)info->si_addr, faulted = jump.fault;
    size_t lost = lost_by(info);
    bool copied = lost && (meets(address, lost, jump.dst, jump.length) ||
                           meets(address, lost, jump.src, jump.length));
    /* A handler that was installed over this one, such as faulthandler's, took the fault, and
     * sends the signal on from within it: then the armed copy is what it interrupted, or else the
     * instruction that it returns to. The kernel keeps the address of that; it also keeps the one
     * of a fault that is long over, which is the one that was dealt with here. */
    bool handed_on = is_sent_by_us(info);
    if (handed_on)
        address = last_fault(context);
    if (lost || handed_on)
        jump.fault = address;
    if (jump.armed && (copied || handed_on)) {
        jump.armed = 0;
        /* SAFETY: the frame that set the target is still there, in this same thread, and nothing
         * but a memcpy or one instruction is left half done (G1, G2, G3). */
        siglongjmp(*jump.target, 1);
    }
    if (lost && survive(address, lost))
        return;
    if (handed_on && address != faulted && survive(address, page))
        return;
    forward(&below[level], number, info, context);
}

#define LEVEL(number)                                                                             \
    static void on_sigbus_##number(int signal, siginfo_t *info, void *context)                    \
    {                                                                                             \
        on_sigbus(number, signal, info, context);                                                 \
    }
LEVEL(0)
LEVEL(1)
LEVEL(2)
LEVEL(3)
static void (*const entry_points[LEVELS])(int, siginfo_t *, void *) = {on_sigbus_0, on_sigbus_1,
                                                                        on_sigbus_2, on_sigbus_3};

/* Which of our entry points an action is; -1 if it is somebody else's. */
static int level_of(const struct sigaction *action)
{
    for (int level = 0; level < LEVELS; level++)
        if ((action->sa_flags & SA_SIGINFO) && action->sa_sigaction == entry_points[level])
            return level;
    return -1;
}

static bool is_default(const struct sigaction *action)
{
    return !(action->sa_flags & SA_SIGINFO) &&
           (action->sa_handler == SIG_DFL || action->sa_handler == SIG_IGN);
}

/* Under the lock. Take over from whoever is there: nobody, or who put the default back over us, as
 * faulthandler.disable() does, or a handler above our highest level, on one more level (G6). Above
 * the last of them it is left alone: most handlers hand on what they do not know. */
static int take_over(void)
{
    struct sigaction current;
    if (sigaction(SIGBUS, NULL, &current))
        return -1;
    int level = level_of(&current);
    if (level >= 0) { /* whoever was above it has left */
        highest = level;
        return 0;
    }
    level = is_default(&current) ? 0 : highest + 1;
    if (level == LEVELS)
        return 0;
    /* SA_NODEFER: the jump does not restore the signal mask, so it must never change. */
    struct sigaction ours = {.sa_sigaction = entry_points[level],
                             .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    below[level] = current;
    if (sigaction(SIGBUS, &ours, NULL))
        return -1;
    highest = level;
    return 0;
}

int guard_install(void)
{
    pthread_once(&forks, follow_forks);
    pthread_mutex_lock(&install_lock);
    page = (uintptr_t)sysconf(_SC_PAGESIZE);
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
        int level = sigaction(SIGBUS, NULL, &current) ? -1 : level_of(&current);
        if (level >= 0 && !sigaction(SIGBUS, &below[level], NULL))
            highest = level - 1;
    }
    pthread_mutex_unlock(&install_lock);
}

bool guard_is_blocked(void)
{
    sigset_t now;
    return !pthread_sigmask(SIG_SETMASK, NULL, &now) && sigismember(&now, SIGBUS) == 1;
}

/* The guarded region itself (G1). Returns false when it faulted. Kept out of line so that no
 * local of a caller lives across the second return of sigsetjmp. */
static __attribute__((noinline)) bool copy_armed(void *dst, const void *src, size_t n)
{
    sigjmp_buf target;
    jump.dst = (uintptr_t)dst;
    jump.src = (uintptr_t)src;
    jump.length = n;
    jump.target = &target;
    if (sigsetjmp(target, 0))
        return false;
    jump.armed = 1;
    /* SAFETY: both ranges are the caller's to touch (I3); what they lack is a page, and that jumps
     * back. The fences keep the copy between arming and disarming, as the handler sees them. */
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
    size_t done = 0;
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

/* SAFETY: as in copy_armed, for one word. */
static __attribute__((noinline)) bool word_armed(struct word_call *call)
{
    sigjmp_buf target;
    jump.dst = jump.src = (uintptr_t)call->at;
    jump.length = call->width;
    jump.target = &target;
    if (sigsetjmp(target, 0))
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
    static PER_THREAD int64_t open_at = -1;
    if (open_at == tick)
        return word_armed(call);
    bool blocked;
    bool done = word_unblocked(call, &blocked);
    open_at = blocked ? -1 : tick;
    return done;
}
