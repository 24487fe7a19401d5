/* guard_harness.c: cases of the SIGBUS guard, see harness.h. */
#include "harness.h"

#include "atomic_word.h"

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
    EXPECT(fault == plain); /* not set without a fault */
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
    EXPECT(guard_copy(plain, mapped, 2 * page, &fault) == 2 * page); /* so can the rest */
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
    EXPECT(!add_one(3 * page, 1, &seen)); /* in a tick in which the thread has looked */
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
    for (int turn = 0; turn < 2; turn++) { /* the second time in the same tick */
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

/* A handler that was installed after the guard stays when the guard goes. */
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
    load_lost_page(); /* unlike a signal that was sent, a fault cannot be ignored */
}

static void foreign_signal(void)
{
    raise(SIGBUS);
}

static struct entry *watch_pages(struct damage *noted)
{
    int protection = PROT_READ | PROT_WRITE;
    struct entry *entry =
        add_mapping((uintptr_t)mapped, PAGES * page, protection, noted, NULL, NULL);
    EXPECT(entry);
    return entry;
}

/* A load and a store at a lost page go on, errno stays as it is, and the handler notes the
 * damage. */
static void watched_pages(void)
{
    watch_pages(&damage);
    EXPECT(!is_damaged(&damage));
    truncate_to(1);
    errno = EXDEV;
    EXPECT(*(volatile char *)(mapped + 3 * page + 7) == 0);
    EXPECT(damage.first_bad == 3 * page && damage.faults == 1);
    *(volatile char *)(mapped + page) = 's';
    EXPECT(mapped[page] == 's' && errno == EXDEV);
    EXPECT(damage.first_bad == 3 * page && damage.faults == 2); /* the first stays noted */
    EXPECT(mapped[0] == 'm'); /* what was not lost is still there */
    EXPECT(ftruncate(file, (off_t)(PAGES * page)) == 0);
    EXPECT(pread(file, plain, 1, (off_t)page) == 1 && plain[0] == 0); /* the store is lost */
}

/* A fault in a copy of our own jumps out and notes no damage, because the caller is told. */
static void watched_copy(void)
{
    watch_pages(&damage);
    truncate_to(1);
    EXPECT(guard_copy(plain, mapped, 2 * page, NULL) == page && !is_damaged(&damage));
    EXPECT(guard_copy(mapped + page, plain, 1, NULL) == 0 && !is_damaged(&damage));
}

/* There are more mappings than a chunk of the table has room for, each with damage of its own. */
static void watched_many(void)
{
    enum { MANY = 1000 };
    static struct damage noted[MANY];
    static char *maps[MANY];
    static struct entry *entries[MANY];
    truncate_to(1);
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < MANY; i++) {
            noted[i] = (struct damage){.first_bad = DAMAGE_NONE};
            maps[i] = mmap(NULL, 2 * page, PROT_READ, MAP_SHARED, file, 0);
            EXPECT(maps[i] != MAP_FAILED);
            entries[i] = add_mapping((uintptr_t)maps[i], 2 * page, PROT_READ,
                                                 &noted[i], NULL, NULL);
            EXPECT(entries[i]);
        }
        for (size_t i = 0; i < MANY; i += 7)
            EXPECT(*(volatile char *)(maps[i] + page) == 0);
        for (size_t i = 0; i < MANY; i++) {
            EXPECT(noted[i].first_bad == (i % 7 ? DAMAGE_NONE : page));
            fault_table_remove(entries[i]);
            munmap(maps[i], 2 * page);
        }
    }
}

static int stop_changing; /* atomic */

static void *change_table(void *unused)
{
    char *elsewhere = mmap(NULL, PAGES * page, PROT_READ, MAP_SHARED, file, 0);
    struct damage none = {.first_bad = DAMAGE_NONE};
    while (!GET(stop_changing)) {
        size_t length = page; /* another one each time, so that a torn read would be wrong */
        for (; length <= PAGES * page; length += page)
            fault_table_remove(
                add_mapping((uintptr_t)elsewhere, length, PROT_READ, &none, NULL, NULL));
    }
    EXPECT(!is_damaged(&none));
    munmap(elsewhere, PAGES * page);
    return unused;
}

static void *fault_often(void *unused)
{
    for (int i = 0; i < 500; i++) {
        struct damage noted = {.first_bad = DAMAGE_NONE};
        char *own = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        EXPECT(own != MAP_FAILED);
        int both = PROT_READ | PROT_WRITE;
        struct entry *entry = add_mapping((uintptr_t)own, 2 * page, both, &noted, NULL, NULL);
        *(volatile char *)(own + page + 1) = 's';
        EXPECT(own[page + 1] == 's' && noted.first_bad == page && noted.faults == 1);
        fault_table_remove(entry);
        munmap(own, 2 * page);
    }
    return unused;
}

/* Several threads fault while others fill in and empty entries. */
static void watched_threads(void)
{
    pthread_t faulting[4], changing[2];
    truncate_to(1);
    for (size_t i = 0; i < 2; i++)
        EXPECT(pthread_create(&changing[i], NULL, change_table, NULL) == 0);
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_create(&faulting[i], NULL, fault_often, NULL) == 0);
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_join(faulting[i], NULL) == 0);
    SET(stop_changing, 1);
    for (size_t i = 0; i < 2; i++)
        EXPECT(pthread_join(changing[i], NULL) == 0);
}

static struct sigaction before_later;
static volatile int later_calls;

/* Like faulthandler: put the earlier action back, then send the signal to it. */
static void hand_on(int number)
{
    later_calls++;
    sigaction(number, &before_later, NULL);
    raise(number);
}

static void install_later(void (*handler)(int))
{
    struct sigaction later = {.sa_handler = handler, .sa_flags = SA_NODEFER};
    EXPECT(sigaction(SIGBUS, &later, &before_later) == 0);
}

/* A handler that is installed over the guard is called first until the guard looks, and last from
 * then on. */
static void later_that_hands_on(void)
{
    watch_pages(&damage);
    truncate_to(1);
    install_later(hand_on);
    load_lost_page();
    EXPECT(later_calls == 1 && damage.first_bad == 3 * page && plain[0] == 0);
    install_later(hand_on);
    EXPECT(guard_copy(plain, mapped + page, 1, NULL) == 0 && later_calls == 2);
    install_later(hand_on);
    guard_refresh();
    EXPECT(*(volatile char *)(mapped + 2 * page) == 0 && later_calls == 2);
    EXPECT(damage.faults == 2);
}

/* A handler that hands nothing on, like Python's own: the guard goes on top of it, again and
 * again. */
static void later_that_leaves(void)
{
    watch_pages(&damage);
    truncate_to(1);
    for (size_t i = 1; i < 4; i++) {
        install_later(leave);
        guard_refresh();
        EXPECT(*(volatile char *)(mapped + i * page) == 0 && damage.faults == i);
    }
    raise(SIGBUS); /* not ours, so it goes down to the handler that leaves */
    EXPECT(!"the action below leaves");
}

static void name_the_page(int number, siginfo_t *info, void *context)
{
    char *address = info->si_addr;
    info->si_addr = address - (uintptr_t)address % page;
    before_later.sa_sigaction(number, info, context);
}

/* For broken memory the kernel names the first byte of the block, and arm64 may name any byte of
 * the page. Such an address may lie in front of a range that begins within the page. */
static void address_beside_the_range(void)
{
    const void *fault = NULL;
    struct sigaction later = {.sa_sigaction = name_the_page, .sa_flags = SA_SIGINFO | SA_NODEFER};
    EXPECT(sigaction(SIGBUS, &later, &before_later) == 0);
    truncate_to(1);
    EXPECT(guard_copy(plain, mapped + page + 7, page, &fault) == 0);
    EXPECT(in_page(fault, 1));
    EXPECT(guard_copy(mapped + 9, plain, page, NULL) == page - 9);
}

/* The guard goes and is installed again while a handler that hands on stays: the chain must not
 * become a ring. */
static void foreign_ring(void)
{
    install_later(hand_on);
    guard_remove();
    EXPECT(guard_install() == 0);
    raise(SIGBUS);
}

static void foreign_unwatched(void)
{
    fault_table_remove(watch_pages(&damage));
    truncate_to(1);
    load_lost_page();
}

static void foreign_beside_watched(void)
{
    watch_pages(&damage);
    char *other = mmap(NULL, page, PROT_READ, MAP_SHARED, file, 0);
    truncate_to(0);
    load_lost_page();
    plain[0] = *(volatile char *)other;
}

/* The kernel keeps the address of a fault that is over. That must not make a later sent signal
 * survivable. */
static void foreign_signal_after_a_fault(void)
{
    watch_pages(&damage);
    truncate_to(1);
    load_lost_page();
    EXPECT(is_damaged(&damage));
    raise(SIGBUS);
}

static const struct test_case cases[] = {
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
    {"watched_pages", watched_pages},
    {"watched_copy", watched_copy},
    {"watched_many", watched_many},
    {"watched_threads", watched_threads},
    {"later_that_hands_on", later_that_hands_on},
    {"later_that_leaves", later_that_leaves},
    {"address_beside_the_range", address_beside_the_range},
    {"foreign_ring", foreign_ring},
    {"foreign_unwatched", foreign_unwatched},
    {"foreign_beside_watched", foreign_beside_watched},
    {"foreign_signal_after_a_fault", foreign_signal_after_a_fault},
    {"foreign_load", foreign_load},
    {"foreign_load_ignored", foreign_load_ignored},
    {"foreign_signal", foreign_signal},
};

RUN_CASES
