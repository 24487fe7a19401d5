/* guard_harness.c: one case of the SIGBUS guard per run, without Python.
 *
 * Usage: guard_harness CASE FILE. FILE is made anew with four pages. A case that holds exits 0; one
 * that does not prints the broken expectation and exits 1. The foreign_* cases die of SIGBUS.
 */
#include "atomics.h"
#include "guard.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 4

#define EXPECT(condition)                                                                         \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "line %d: expected %s\n", __LINE__, #condition);                      \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

static size_t page;
static char *mapped;   /* PAGES pages of the file */
static int file;
static char *plain;    /* as many bytes of ordinary memory */

static void set_up(const char *path)
{
    page = (size_t)sysconf(_SC_PAGESIZE);
    file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    EXPECT(file >= 0 && ftruncate(file, (off_t)(PAGES * page)) == 0);
    mapped = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    plain = malloc(PAGES * page);
    EXPECT(mapped != MAP_FAILED && plain);
    memset(mapped, 'm', PAGES * page);
    memset(plain, 'p', PAGES * page);
}

static void truncate_to(size_t pages)
{
    EXPECT(ftruncate(file, (off_t)(pages * page)) == 0);
}

static bool in_page(const void *fault, size_t number)
{
    return ((uintptr_t)fault - (uintptr_t)mapped) / page == number;
}

static bool is_blocked(void)
{
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    return sigismember(&now, SIGBUS);
}

static void whole_copy(void)
{
    const void *fault = plain;
    EXPECT(guard_copy(plain, mapped, PAGES * page, &fault) == PAGES * page);
    EXPECT(memcmp(plain, mapped, PAGES * page) == 0);
    EXPECT(fault == plain); /* untouched without a fault */
    EXPECT(guard_copy(plain, mapped, 0, NULL) == 0);
}

static void truncated_source(void)
{
    const void *fault = NULL;
    truncate_to(2);
    EXPECT(guard_copy(plain, mapped + 5, PAGES * page - 5, &fault) == 2 * page - 5);
    EXPECT(in_page(fault, 2));
    EXPECT(plain[0] == 'm' && plain[2 * page - 6] == 'm' && plain[2 * page - 5] == 'p');
    EXPECT(guard_copy(plain, mapped + 3 * page, 1, NULL) == 0); /* nobody asks for the address */
    EXPECT(guard_copy(plain, mapped, 2 * page, &fault) == 2 * page); /* the rest goes on */
}

static void truncated_target(void)
{
    const void *fault = NULL;
    truncate_to(1);
    EXPECT(guard_copy(mapped + 7, plain, 2 * page, &fault) == page - 7);
    EXPECT(in_page(fault, 1));
    EXPECT(mapped[6] == 'm' && mapped[7] == 'p' && mapped[page - 1] == 'p');
}

static bool add_one(size_t offset, int64_t tick, uint64_t *seen)
{
    struct word_call call = {.at = mapped + offset,
                             .width = sizeof(uint64_t),
                             .operation = WORD_ADD,
                             .order = ORDER_SEQ_CST,
                             .value = 1};
    bool done = guard_word(&call, tick);
    *seen = call.seen;
    return done;
}

static void word(void)
{
    uint64_t seen;
    memset(mapped, 0, page);
    EXPECT(add_one(8, 1, &seen) && seen == 0);
    EXPECT(add_one(8, 1, &seen) && seen == 1);
    truncate_to(2);
    EXPECT(!add_one(3 * page, 1, &seen)); /* in a tick that was looked at */
    EXPECT(!add_one(3 * page, 2, &seen)); /* and in a new one */
    EXPECT(add_one(8, 2, &seen) && seen == 2);
}

static void word_with_sigbus_blocked(void)
{
    uint64_t seen;
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_BLOCK, &bus, NULL);
    truncate_to(1);
    for (int turn = 0; turn < 2; turn++) { /* twice in one tick: it is not remembered as open */
        EXPECT(!add_one(2 * page, 1, &seen) && is_blocked());
        EXPECT(add_one(0, 1, &seen) && is_blocked());
    }
}

static void signal_mask(void)
{
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    truncate_to(0);
    EXPECT(guard_copy(plain, mapped, 1, NULL) == 0 && !is_blocked());
    pthread_sigmask(SIG_BLOCK, &bus, NULL);
    EXPECT(guard_copy(plain, mapped, 1, NULL) == 0 && is_blocked());
}

static void *copy_often(void *lost)
{
    char *to = malloc(page);
    size_t number = lost ? 3 : 0, expected = lost ? 0 : page;
    EXPECT(to);
    for (int i = 0; i < 2000; i++) {
        const void *fault = NULL;
        EXPECT(guard_copy(to, mapped + number * page, page, &fault) == expected);
        EXPECT(lost ? in_page(fault, 3) : fault == NULL);
    }
    free(to);
    return NULL;
}

static void threads(void)
{
    pthread_t thread[4];
    truncate_to(2);
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_create(&thread[i], NULL, copy_often, i % 2 ? plain : NULL) == 0);
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_join(thread[i], NULL) == 0);
}

static void counted(void)
{
    struct sigaction now;
    truncate_to(0);
    EXPECT(guard_install() == 0);
    guard_remove();
    EXPECT(guard_copy(plain, mapped, 1, NULL) == 0); /* one install is left */
    guard_remove();
    EXPECT(sigaction(SIGBUS, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
    EXPECT(guard_install() == 0);
    EXPECT(guard_copy(plain, mapped, 1, NULL) == 0);
}

static void leave(int number)
{
    _exit(number == SIGBUS ? 0 : 1);
}

static void leave_informed(int number, siginfo_t *info, void *context)
{
    bool ours = info->si_code == BUS_ADRERR && in_page(info->si_addr, 3) && context;
    _exit(number == SIGBUS && ours ? 0 : 1);
}

/* Put the guard on top of another action, as if that had been there from the start. */
static void install_over(struct sigaction earlier)
{
    guard_remove();
    EXPECT(sigaction(SIGBUS, &earlier, NULL) == 0 && guard_install() == 0);
    truncate_to(2);
    EXPECT(guard_copy(plain, mapped + 2 * page, 1, NULL) == 0); /* ours, so not handed on */
}

static void load_lost_page(void)
{
    plain[0] = *(volatile char *)(mapped + 3 * page);
}

static void earlier_handler(void)
{
    install_over((struct sigaction){.sa_handler = leave});
    load_lost_page();
    EXPECT(!"the handler that was there before leaves");
}

static void earlier_action(void)
{
    install_over((struct sigaction){.sa_sigaction = leave_informed, .sa_flags = SA_SIGINFO});
    load_lost_page();
    EXPECT(!"the action that was there before leaves");
}

/* Whoever came after the guard stays when it goes. */
static void later_action(void)
{
    struct sigaction later = {.sa_sigaction = leave_informed, .sa_flags = SA_SIGINFO}, now;
    EXPECT(sigaction(SIGBUS, &later, NULL) == 0);
    guard_remove();
    EXPECT(sigaction(SIGBUS, NULL, &now) == 0 && now.sa_sigaction == leave_informed);
}

static void ignored_signal(void)
{
    install_over((struct sigaction){.sa_handler = SIG_IGN});
    raise(SIGBUS);
}

static void foreign_load(void)
{
    EXPECT(guard_copy(plain, mapped + 3 * page, page, NULL) == page);
    truncate_to(0);
    load_lost_page(); /* the very page that a guarded copy had just read */
}

static void foreign_load_ignored(void)
{
    install_over((struct sigaction){.sa_handler = SIG_IGN});
    load_lost_page(); /* a fault, other than a signal that was sent, cannot be ignored */
}

static void foreign_signal(void)
{
    raise(SIGBUS);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"whole_copy", whole_copy},
    {"truncated_source", truncated_source},
    {"truncated_target", truncated_target},
    {"word", word},
    {"word_with_sigbus_blocked", word_with_sigbus_blocked},
    {"signal_mask", signal_mask},
    {"threads", threads},
    {"counted", counted},
    {"earlier_handler", earlier_handler},
    {"earlier_action", earlier_action},
    {"later_action", later_action},
    {"ignored_signal", ignored_signal},
    {"foreign_load", foreign_load},
    {"foreign_load_ignored", foreign_load_ignored},
    {"foreign_signal", foreign_signal},
};

int main(int count, char **arguments)
{
    for (size_t i = 0; count == 3 && i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(arguments[1], cases[i].name) != 0)
            continue;
        set_up(arguments[2]);
        EXPECT(guard_install() == 0);
        cases[i].run();
        return 0;
    }
    fprintf(stderr, "usage: guard_harness CASE FILE\n");
    return 2;
}
