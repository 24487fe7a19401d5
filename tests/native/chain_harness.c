/* chain_harness.c: cases of the SIGBUS guard among foreign handlers, see harness.h. */
#include "harness.h"

#include <setjmp.h>
#include <sys/wait.h>

#include "atomic_word.h"

/* Of sigaltstack(2), since Linux 4.7. */
static const unsigned autodisarm = 1U << 31;

enum { LEVELS_OF_OTHERS = 6 };
static struct sigaction previous[LEVELS_OF_OTHERS];
static int installed;
static volatile int calls;

static void call_on(int level, int number, siginfo_t *info, void *context)
{
    calls++;
    if (previous[level].sa_flags & SA_SIGINFO)
        previous[level].sa_sigaction(number, info, context);
    else if (previous[level].sa_handler != SIG_DFL)
        previous[level].sa_handler(number);
    else
        signal(number, SIG_DFL);
}

#define CHAINED(level)                                                                            \
    static void chained_##level(int number, siginfo_t *info, void *context)                       \
    {                                                                                             \
        call_on(level, number, info, context);                                                    \
    }
CHAINED(0)
CHAINED(1)
CHAINED(2)
CHAINED(3)
CHAINED(4)
CHAINED(5)
static void (*const chained[])(int, siginfo_t *, void *) = {chained_0, chained_1, chained_2,
                                                            chained_3, chained_4, chained_5};

/* Like some crash reporters: it blocks everything, and calls the handler before it. */
static void install_chained(int flags)
{
    struct sigaction action = {.sa_sigaction = chained[installed], .sa_flags = SA_SIGINFO | flags};
    sigfillset(&action.sa_mask);
    if (flags & SA_NODEFER)
        sigdelset(&action.sa_mask, SIGBUS);
    EXPECT(sigaction(SIGBUS, &action, &previous[installed++]) == 0);
}

/* Like others: it puts the action before it back, lets SIGBUS through, and sends it once more. */
static void send_on(int number)
{
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, number);
    calls++;
    sigaction(number, &previous[--installed], NULL);
    pthread_sigmask(SIG_UNBLOCK, &bus, NULL);
    raise(number);
}

static void install_sender(void)
{
    struct sigaction action = {.sa_handler = send_on};
    sigfillset(&action.sa_mask);
    EXPECT(sigaction(SIGBUS, &action, &previous[installed++]) == 0);
}

static bool is_blocked(int number)
{
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    return sigismember(&now, number);
}

static void block(int number)
{
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, number);
    pthread_sigmask(SIG_BLOCK, &one, NULL);
}

static bool load(size_t offset, int64_t tick)
{
    struct word_call call = {.at = mapped + offset,
                             .width = sizeof(uint64_t),
                             .operation = WORD_LOAD,
                             .order = ORDER_SEQ_CST};
    return guard_word(&call, tick);
}

/* Each fault happens twice: the second one kills a thread whose mask is still that of the
 * handler. */
static void expect_survival(int expected_calls)
{
    int before = calls;
    for (int64_t turn = 0; turn < 2; turn++) {
        EXPECT(guard_copy(plain, mapped, PAGES * page, NULL) == page);
        EXPECT(guard_copy(mapped + page, plain, 1, NULL) == 0);
        EXPECT(!load(2 * page, 7) && load(0, 7));
        EXPECT(!is_blocked(SIGINT) && !is_blocked(SIGTERM) && is_blocked(SIGUSR1));
    }
    EXPECT(calls - before == expected_calls);
}

static void chained_by_a_call(void)
{
    block(SIGUSR1);
    truncate_to(1);
    EXPECT(load(0, 7));
    install_chained(0);
    expect_survival(10); /* two turns of: a copy and its page, a store and its page, a word */
}

static void chained_without_defer(void)
{
    block(SIGUSR1);
    truncate_to(1);
    EXPECT(load(0, 7));
    install_chained(SA_NODEFER | SA_ONSTACK);
    expect_survival(10);
}

static void chained_thrice(void)
{
    block(SIGUSR1);
    truncate_to(1);
    EXPECT(load(0, 7));
    install_chained(0);
    install_chained(SA_NODEFER);
    install_chained(0);
    expect_survival(30);
}

/* Chained more often than the guard has levels: from then on the guard stays below. */
static void chained_above_all_levels(void)
{
    block(SIGUSR1);
    truncate_to(1);
    for (int i = 0; i < LEVELS_OF_OTHERS; i++) {
        install_chained(0);
        guard_refresh();
    }
    EXPECT(load(0, 7));
    expect_survival(30); /* three handlers were installed over the highest level */
}

/* A signal that the thread has blocked since the guard looked stays blocked. */
static void chained_in_one_tick(void)
{
    truncate_to(1);
    EXPECT(load(0, 7));
    install_chained(0);
    block(SIGUSR1);
    EXPECT(!load(page, 7) && is_blocked(SIGUSR1) && !is_blocked(SIGUSR2) && calls == 1);
}

static void chained_with_sigbus_blocked(void)
{
    block(SIGBUS);
    truncate_to(1);
    install_chained(0);
    for (int turn = 0; turn < 2; turn++) {
        EXPECT(guard_copy(plain, mapped, 2 * page, NULL) == page);
        EXPECT(!load(page, 7) && is_blocked(SIGBUS) && !is_blocked(SIGINT));
    }
}

static void sent_on(void)
{
    block(SIGUSR1);
    truncate_to(1);
    for (int turn = 0; turn < 2; turn++) {
        EXPECT(load(0, 7));
        install_sender();
        EXPECT(!load(page, 7) && !is_blocked(SIGINT) && is_blocked(SIGUSR1));
        install_sender();
        EXPECT(guard_copy(plain, mapped + page, 1, NULL) == 0);
        EXPECT(!is_blocked(SIGINT) && is_blocked(SIGUSR1) && calls == 2 + 2 * turn);
    }
    EXPECT(!load(page, 7) && guard_copy(plain, mapped, 2 * page, NULL) == page);
}

static volatile bool has_foreign_page;

/* Like a crash reporter that loads from memory which is lost as well. */
static void look_at_lost_page(int number, siginfo_t *info, void *context)
{
    has_foreign_page = *(volatile char *)(mapped + 3 * page) == 0;
    call_on(0, number, info, context);
}

static void faults_within_a_handler(void)
{
    EXPECT(add_mapping((uintptr_t)mapped, PAGES * page, PROT_READ, &damage, NULL, NULL));
    struct sigaction action = {.sa_sigaction = look_at_lost_page,
                               .sa_flags = SA_SIGINFO | SA_NODEFER};
    truncate_to(1);
    EXPECT(sigaction(SIGBUS, &action, &previous[installed++]) == 0);
    has_foreign_page = false;
    EXPECT(sigaction(SIGBUS, &previous[0], NULL) == 0); /* first without the reporter */
    EXPECT(*(volatile char *)(mapped + 3 * page) == 0);
    EXPECT(sigaction(SIGBUS, &action, NULL) == 0);
    EXPECT(guard_copy(plain, mapped + page, 1, NULL) == 0 && has_foreign_page);
    EXPECT(*(volatile char *)(mapped + 2 * page) == 0 && faults_noted() == 2);
}

/* An alternate stack that the kernel takes out of use for as long as a handler runs. */
static void automatic_stack(void)
{
    size_t size = (size_t)1 << 17;
    stack_t stack = {.ss_sp = malloc(size), .ss_size = size, .ss_flags = (int)autodisarm}, now;
    EXPECT(stack.ss_sp && sigaltstack(&stack, NULL) == 0);
    truncate_to(1);
    for (int turn = 0; turn < 2; turn++) {
        EXPECT(guard_copy(plain, mapped, 2 * page, NULL) == page);
        EXPECT(sigaltstack(NULL, &now) == 0 && now.ss_sp == stack.ss_sp);
        EXPECT(load(0, 7) && !load(page, 7));
        EXPECT(sigaltstack(NULL, &now) == 0 && now.ss_sp == stack.ss_sp);
        EXPECT((unsigned)now.ss_flags & autodisarm);
        if (turn == 0)
            install_chained(SA_ONSTACK);
    }
    EXPECT(calls > 0);
}

/* A handler below the guard that jumps out of its own faults, in a mapping outside the fault
 * table. */
static sigjmp_buf theirs;

static void jump_out(int number)
{
    EXPECT(is_blocked(number) && is_blocked(SIGUSR2));
#ifndef THREAD_SANITIZER /* ThreadSanitizer blocks every signal in every handler */
    EXPECT(!is_blocked(SIGUSR1));
#endif
    siglongjmp(theirs, 1);
}

static void jumping_below(void)
{
    struct sigaction action = {.sa_handler = jump_out};
    sigaddset(&action.sa_mask, SIGUSR2);
    guard_remove();
    EXPECT(sigaction(SIGBUS, &action, NULL) == 0 && guard_install() == 0);
    truncate_to(1);
    for (volatile int turn = 0; turn < 3; turn++) {
        if (sigsetjmp(theirs, 1) == 0) {
            plain[0] = *(volatile char *)(mapped + page);
            EXPECT(!"it jumped out");
        }
        EXPECT(!is_blocked(SIGBUS) && !is_blocked(SIGUSR2));
        EXPECT(guard_copy(plain, mapped, 2 * page, NULL) == page && !load(page, 7));
    }
}

/* A handler that is to be called once, before the process dies: the fault must not go on for
 * ever. */
static void count_call(int number)
{
    (void)number;
    if (calls++)
        _exit(1);
}

static void foreign_once(void)
{
    struct sigaction once = {.sa_handler = count_call, .sa_flags = (int)SA_RESETHAND};
    guard_remove();
    EXPECT(sigaction(SIGBUS, &once, NULL) == 0 && guard_install() == 0);
    truncate_to(1);
    plain[0] = *(volatile char *)(mapped + page);
}

/* The kernel says that four pages are broken: a block aligned to its size, as the mapping is
 * not. */
static void say_broken(int number, siginfo_t *info, void *context)
{
    info->si_code = BUS_MCEERR_AR;
    info->si_addr_lsb = (short)(__builtin_ctzl(page) + 2);
    call_on(0, number, info, context);
}

static void broken_block(void)
{
    enum { MANY = 16 };
    size_t block = 4 * page;
    char *area = mmap(NULL, MANY * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(area != MAP_FAILED && ftruncate(file, (off_t)(MANY * page)) == 0);
    char *base = area + (block - (uintptr_t)area % block) % block + page; /* off by a page */
    EXPECT(mmap(base, 9 * page, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == base);
    for (size_t i = 0; i < 9; i++)
        EXPECT(pwrite(file, "f", 1, (off_t)(i * page)) == 1);
    EXPECT(add_mapping((uintptr_t)base, 9 * page, PROT_READ, &damage, NULL, NULL));
    struct sigaction action = {.sa_sigaction = say_broken, .sa_flags = SA_SIGINFO | SA_NODEFER};
    EXPECT(sigaction(SIGBUS, &action, &previous[installed++]) == 0);
    truncate_to(6);
    EXPECT(ftruncate(file, (off_t)(6 * page)) == 0);
    EXPECT(*(volatile char *)(base + 6 * page) == 0 && damage.first_bad == 3 * page);
    EXPECT(base[2 * page] == 'f' && base[3 * page] == 0 && base[5 * page] == 0);
    EXPECT(ftruncate(file, 0) == 0);
    EXPECT(*(volatile char *)(base + page) == 0 && faults_noted() == 2); /* cut at the mapping */
    EXPECT(*(volatile char *)base == 0 && faults_noted() == 2);
    EXPECT(*(volatile char *)(base + 8 * page) == 0 && faults_noted() == 3);
}

static void *copy_in_child(void *unused)
{
    pid_t child = fork();
    if (!child) {
        bool all = guard_copy(plain, mapped, 2 * page, NULL) == page && !load(page, 7);
        guard_refresh();
        _exit(all && !is_blocked(SIGINT) ? 0 : 1);
    }
    int status;
    EXPECT(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    return unused;
}

/* Fork in threads that have no alternate stack, while others install and fault. */
static void forked_in_a_thread(void)
{
    pthread_t thread[4];
    truncate_to(1);
    install_chained(SA_ONSTACK);
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_create(&thread[i], NULL, copy_in_child, NULL) == 0);
    for (int i = 0; i < 200; i++) {
        EXPECT(guard_install() == 0 && guard_copy(plain, mapped + page, 1, NULL) == 0);
        guard_remove();
    }
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_join(thread[i], NULL) == 0);
}

static const struct test_case cases[] = {
    {"chained_by_a_call", chained_by_a_call},
    {"chained_without_defer", chained_without_defer},
    {"chained_thrice", chained_thrice},
    {"chained_above_all_levels", chained_above_all_levels},
    {"chained_in_one_tick", chained_in_one_tick},
    {"chained_with_sigbus_blocked", chained_with_sigbus_blocked},
    {"sent_on", sent_on},
    {"faults_within_a_handler", faults_within_a_handler},
    {"automatic_stack", automatic_stack},
    {"jumping_below", jumping_below},
    {"broken_block", broken_block},
    {"forked_in_a_thread", forked_in_a_thread},
    {"foreign_once", foreign_once},
};

RUN_CASES
