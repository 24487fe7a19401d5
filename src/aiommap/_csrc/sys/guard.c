#include "guard.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "atomic_word.h"
#include "page.h"
#include "per_thread.h"
#include "spare.h"
#include "survive.h"

/* Where the handler jumps to; on the stack of the function that armed it. The handler fills in the
 * rest, for a jump leaves two things to undo: a foreign handler that called ours may have blocked
 * signals, and the kernel keeps an alternate stack with SS_AUTODISARM out of use until the handler
 * returns. */
struct landing {
    sigjmp_buf target;
    bool told;     /* whether the next two are those of the faulting code, and not of a handler */
    sigset_t mask; /* the signals that the faulting code blocked */
    stack_t stack; /* its alternate stack */
};

/* One per thread; only its own thread touches it, in and out of the handler. It is small, because
 * all libraries share the static block of a thread, and a jump target has 312 bytes on arm64. */
struct jump {
    struct landing *volatile landing; /* NULL unless armed */
    uintptr_t dst, src;  /* starts of the two copied ranges */
    size_t length;       /* their common length */
    uintptr_t fault;     /* the address of the last fault that the handler saw */
};

static PER_THREAD struct jump jump;

/* SS_AUTODISARM of sigaltstack(2), since Linux 4.7. Headers of C libraries lack it. */
#ifdef __linux__
enum { AUTODISARM = 1U << 31 };
#else
enum { AUTODISARM = 0 };
#endif

enum { LEVELS = 4 };

static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned installs;              /* install_lock */
static int highest = -1;               /* install_lock; the highest level in use */
static struct sigaction below[LEVELS]; /* written under install_lock before its level goes live */

/* A forked child has one thread, so nobody there would ever release a lock that another thread of
 * the parent held. */
static void lock_installs(void) { pthread_mutex_lock(&install_lock); }
static void unlock_installs(void) { pthread_mutex_unlock(&install_lock); }
static pthread_once_t forks = PTHREAD_ONCE_INIT;
static void follow_forks(void)
{
    pthread_atfork(lock_installs, unlock_installs, unlock_installs);
}

/* Whether the block of lost memory around an address meets a range. The address alone may lie just
 * outside: for broken memory the kernel names the first byte of the block, and after a fault of a
 * wide vector instruction arm64 names any byte of the page (FAR not precise). */
static bool meets(uintptr_t address, size_t lost, uintptr_t start, size_t length)
{
    uintptr_t block = address - address % lost;
    return block - start < length || (length && start - block < lost); /* below 0 it wraps: huge */
}

static bool is_default(const struct sigaction *action)
{
    return !(action->sa_flags & SA_SIGINFO) &&
           (action->sa_handler == SIG_DFL || action->sa_handler == SIG_IGN);
}

/* Call a handler as the kernel would: block the signals that it wants blocked, and reset it first
 * if it is for one signal only. */
static void call(struct sigaction *previous, int number, siginfo_t *info, void *context)
{
    struct sigaction action = *previous;
    sigset_t before;
    if (!(action.sa_flags & SA_NODEFER))
        sigaddset(&action.sa_mask, number);
    if (action.sa_flags & (int)SA_RESETHAND) {
        /* SAFETY: the flags go first. With SA_SIGINFO still set, another thread would take SIG_DFL
         * for a function, and call it. */
        __atomic_store_n(&previous->sa_flags, 0, __ATOMIC_RELEASE);
        __atomic_store_n(&previous->sa_handler, SIG_DFL, __ATOMIC_RELEASE);
    }
    pthread_sigmask(SIG_BLOCK, &action.sa_mask, &before);
    if (action.sa_flags & SA_SIGINFO)
        action.sa_sigaction(number, info, context);
    else
        action.sa_handler(number);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Hand a signal that is not ours to the action that was there before us. */
static void forward(struct sigaction *previous, int number, siginfo_t *info, void *context)
{
    if (!is_default(previous)) {
        call(previous, number, info, context);
        return;
    }
    bool sent = info->si_code <= 0; /* by kill() and friends, not by a faulting instruction */
    if (sent && previous->sa_handler == SIG_IGN)
        return;
    /* A fault happens again on return and then meets the default action; a sent signal does not,
     * so it is sent again. */
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigaction(number, &fatal, NULL);
    if (sent)
        raise(number);
}

/* The address of the thread's last fault, also when this signal is another one; 0 where the
 * platform does not tell it. */
static uintptr_t last_fault(const ucontext_t *context)
{
    if (!context)
        return 0;
#if defined(__linux__) && defined(__x86_64__)
    return (uintptr_t)context->uc_mcontext.gregs[REG_CR2];
#elif defined(__linux__) && defined(__aarch64__)
    return (uintptr_t)context->uc_mcontext.fault_address;
#else
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

/* How many bytes of memory a fault made unusable; 0 if the signal is no fault. */
static size_t lost_by(const siginfo_t *info)
{
#ifdef BUS_MCEERR_AR
    if (info->si_code == BUS_MCEERR_AR) {
        size_t broken = (size_t)1 << info->si_addr_lsb;
        return broken > page_size() ? broken : page_size();
    }
#endif
    return info->si_code == BUS_ADRERR ? page_size() : 0;
}

static void on_sigbus(int level, int number, siginfo_t *info, void *context)
{
    uintptr_t address = (uintptr_t)info->si_addr, faulted = jump.fault;
    size_t lost = lost_by(info);
    bool copied = lost && (meets(address, lost, jump.dst, jump.length) ||
                           meets(address, lost, jump.src, jump.length));
    /* A handler above ours, such as faulthandler's, may have taken the fault, and sends the signal
     * on from within. Then the armed copy faulted or, if none is armed, the instruction to which
     * that handler returns. The kernel keeps the address of the last fault. If this handler has
     * seen that very address before, the fault is long over. */
    bool handed_on = is_sent_by_us(info);
    if (handed_on)
        address = last_fault(context);
    if (lost || handed_on)
        jump.fault = address;
    struct landing *landing = jump.landing;
    if (landing && (copied || handed_on)) {
        const ucontext_t *interrupted = context;
        jump.landing = NULL;
        landing->told = interrupted && !handed_on;
        if (landing->told) {
            landing->mask = interrupted->uc_sigmask;
            landing->stack = interrupted->uc_stack;
        }
        /* SAFETY: the frame that set the target is still there, in this same thread, and nothing
         * but a memcpy or one instruction is left half done (guard.1, guard.2, guard.3). */
        siglongjmp(landing->target, 1);
    }
    if (lost && survive_fault(address, lost))
        return;
    if (handed_on && address != faulted && survive_fault(address, page_size()))
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

/* Under the lock. Take SIGBUS over. Level 0 goes where there is no handler, or where somebody has
 * put the default back, as faulthandler.disable() does. One more level goes on top of a foreign
 * handler (guard.6). Above our last level a foreign handler stays on top: most handlers hand on
 * what they do not know. */
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
    /* SA_NODEFER and an empty mask: the kernel then blocks nothing, and a jump leaves the signal
     * mask as it was, unless a handler above ours has changed it. */
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
    int failed = take_over();
    if (!failed) {
        installs++;
        spare_keep();
    }
    pthread_mutex_unlock(&install_lock);
    return failed;
}

void guard_refresh(void)
{
    pthread_mutex_lock(&install_lock);
    if (installs) {
        take_over();
        spare_keep();
    }
    pthread_mutex_unlock(&install_lock);
}

void guard_remove(void)
{
    pthread_mutex_lock(&install_lock);
    if (--installs == 0) {
        struct sigaction current;
        /* A handler that was installed over ours keeps a pointer to ours: leave the chain whole. */
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

/* Bytes of a signal set that the kernel knows; C libraries keep room for more. */
enum { MASK_BYTES = sizeof(sigset_t) < 8 ? sizeof(sigset_t) : 8 };

/* The signals that the thread blocked when guard_word last looked. */
static PER_THREAD char seen_mask[MASK_BYTES];

/* Keep guard.8. `mask` is the one from before the copy; for a word it is NULL, as nobody asked for
 * it. This does not run in the handler: handlers of the signals that it lets through would run on
 * top. */
static __attribute__((noinline)) void land(const struct landing *landing, const sigset_t *mask)
{
    sigset_t open;
    sigemptyset(&open);
    if (mask)
        open = *mask;
    else
        memcpy(&open, landing->told ? (const void *)&landing->mask : seen_mask, MASK_BYTES);
    sigdelset(&open, SIGBUS); /* guard.4 */
    if (landing->told && (unsigned)landing->stack.ss_flags & AUTODISARM)
        sigaltstack(&landing->stack, NULL);
    pthread_sigmask(SIG_SETMASK, &open, NULL);
}

/* Let SIGBUS through (guard.4). Whether the thread blocked it; *before is its mask from before. To
 * look first takes a sixth less time than to unblock a signal that is not blocked, and every inline
 * verb pays for it. */
static bool let_through(sigset_t *before)
{
    sigset_t bus;
    pthread_sigmask(SIG_SETMASK, NULL, before);
    if (!sigismember(before, SIGBUS))
        return false;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &bus, NULL);
    return true;
}

/* memcpy, but in pieces that the C library does not copy by `rep movsb` where that is slow: Zen 3 and
 * 4 take nine times as long if the destination lies a little further into its page than the source
 * (glibc's bug 30994). All memory that malloc maps begins 16 bytes into a page. */
static __attribute__((noinline)) void copy_bytes(char *dst, const char *src, size_t n)
{
    enum { SLOW_BELOW = 32, PIECE = 2048 };
    size_t further = (size_t)((uintptr_t)dst - (uintptr_t)src) % page_size();
    if (further > 0 && further < SLOW_BELOW)
        for (; n > PIECE; dst += PIECE, src += PIECE, n -= PIECE)
            memcpy(dst, src, PIECE);
    memcpy(dst, src, n);
}

/* The guarded region itself (guard.1). Returns false when it faulted. Kept out of line so that no
 * local of a caller lives across the second return of sigsetjmp. */
static __attribute__((noinline)) bool copy_armed(void *dst, const void *src, size_t n,
                                                 const sigset_t *mask)
{
    struct landing landing;
    jump.dst = (uintptr_t)dst;
    jump.src = (uintptr_t)src;
    jump.length = n;
    if (sigsetjmp(landing.target, 0)) {
        land(&landing, mask);
        return false;
    }
    jump.landing = &landing;
    /* SAFETY: both ranges are the caller's to touch (I3); all that they can lack is a page, and
     * then the handler jumps back. The fences keep the copy between arming and disarming, as the
     * handler sees them. */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    copy_bytes(dst, src, n);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    jump.landing = NULL;
    return true;
}

/* memcpy may touch the end of a range first. So after a fault this finds the exact prefix: it
 * copies again, page by page of either side. */
static size_t copy_prefix(char *dst, const char *src, size_t n, const sigset_t *mask)
{
    size_t done = 0;
    while (done < n) {
        size_t dst_left = page_size() - (uintptr_t)(dst + done) % page_size();
        size_t src_left = page_size() - (uintptr_t)(src + done) % page_size();
        size_t step = dst_left < src_left ? dst_left : src_left;
        if (step > n - done)
            step = n - done;
        if (!copy_armed(dst + done, src + done, step, mask))
            break;
        done += step;
    }
    return done;
}

size_t guard_copy(void *dst, const void *src, size_t n, const void **fault)
{
    sigset_t before;
    bool blocked = let_through(&before);
    size_t done = n;
    if (!copy_armed(dst, src, n, &before)) {
        done = copy_prefix(dst, src, n, &before);
        if (done < n && fault)
            *fault = (const void *)jump.fault;
    }
    if (blocked)
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    return done;
}

/* SAFETY: as in copy_armed, for one word. */
static __attribute__((noinline)) bool word_armed(struct word_call *call)
{
    struct landing landing;
    jump.dst = jump.src = (uintptr_t)call->at;
    jump.length = call->width;
    if (sigsetjmp(landing.target, 0)) {
        land(&landing, NULL);
        return false;
    }
    jump.landing = &landing;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    word_act(call);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    jump.landing = NULL;
    return true;
}

static __attribute__((noinline)) bool word_unblocked(struct word_call *call, bool *blocked)
{
    sigset_t before;
    guard_refresh();
    *blocked = let_through(&before);
    memcpy(seen_mask, &before, MASK_BYTES);
    bool done = word_armed(call);
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
