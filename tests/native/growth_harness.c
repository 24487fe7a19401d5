/* growth_harness.c: cases of growth by the SIGBUS handler, see harness.h. */
#include "harness.h"

#include <sys/syscall.h>

static struct growth growth;

/* Map a capacity of one gibibyte over an empty file. */
static char *map_growable(bool sparse)
{
    size_t capacity = (size_t)1 << 30;
    truncate_to(0);
    growth = (struct growth){.fd = file, .sparse = sparse};
    char *base = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    EXPECT(base != MAP_FAILED);
    EXPECT(add_mapping((uintptr_t)base, capacity, PROT_READ | PROT_WRITE, &damage,
                                   &growth, NULL));
    return base;
}

/* The handler changed it behind the back of the compiler. */
static int64_t end_now(void) { return __atomic_load_n(&growth.end, __ATOMIC_SEQ_CST); }

static int64_t length_of_file(void) { return (int64_t)lseek(file, 0, SEEK_END); }

static void growing(void)
{
    for (int sparse = 0; sparse < 2; sparse++) {
        char *base = map_growable(sparse);
        errno = EXDEV;
        *(volatile char *)base = 'a';
        EXPECT(end_now() == GROWTH_MIN_BYTES && growth.grown == end_now() && errno == EXDEV);
        *(volatile char *)(base + end_now()) = 'b';
        EXPECT(end_now() == 2 * GROWTH_MIN_BYTES && length_of_file() == end_now());
        EXPECT(growth_truncate(&growth, file, 3, true) == 0 && end_now() == (int64_t)page);
        EXPECT(growth.grown == 0 && base[0] == 'a' && base[3] == 0 && length_of_file() == end_now());
        EXPECT(growth_extend(&growth, file, 10) == 0 && length_of_file() == (int64_t)page);
        EXPECT(growth_extend(&growth, file, 5 * (int64_t)page) == 0);
        EXPECT(length_of_file() == end_now() && end_now() == 5 * (int64_t)page);
        *(volatile char *)(base + ((size_t)1 << 30) - 1) = 'c'; /* the very last byte */
        EXPECT(end_now() == (int64_t)1 << 30 && !is_damaged(&damage));
        growth_stop(&growth);
        EXPECT(growth_truncate(&growth, file, 0, false) == 0);
        *(volatile char *)(base + 9 * page) = 'd'; /* into a private page of zeros */
        EXPECT(length_of_file() == 0 && !is_damaged(&damage));
    }
}

/* Below its old end a file does not grow back: those bytes are lost. */
static void growing_cut_off(void)
{
    char *base = map_growable(true);
    *(volatile char *)(base + 7 * page) = 'a';
    truncate_to(1);
    EXPECT(*(volatile char *)(base + 7 * page) == 0);
    EXPECT(damage.first_bad == 7 * page && damage.error == EFAULT);
    EXPECT(length_of_file() == (int64_t)page);
}

static void *grow_often(void *base)
{
    for (size_t at = 0; at < (size_t)64 << 20; at += 3 * page)
        __atomic_store_n((char *)base + at, 'g', __ATOMIC_RELAXED);
    return NULL;
}

static void growing_threads(void)
{
    pthread_t thread[4];
    char *base = map_growable(true);
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_create(&thread[i], NULL, grow_often, base) == 0);
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_join(thread[i], NULL) == 0);
    EXPECT(!is_damaged(&damage) && end_now() == (int64_t)64 << 20 && growth.busy == 0);
    for (size_t at = 0; at < (size_t)64 << 20; at += 3 * page)
        EXPECT(base[at] == 'g');
}

/* A limit on the length of files does the same as a full disk. */
static void growing_without_room(void)
{
    struct rlimit limit = {.rlim_cur = 10 * page + 100, .rlim_max = RLIM_INFINITY};
    char *base = map_growable(false);
    signal(SIGXFSZ, SIG_IGN);
    EXPECT(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    for (size_t i = 0; i < 10; i++)
        *(volatile char *)(base + i * page) = 'a';
    EXPECT(!is_damaged(&damage) && end_now() == 10 * (int64_t)page);
    *(volatile char *)(base + 10 * page) = 'b';
    EXPECT(damage.first_bad == 10 * page && damage.error == EFBIG);
    EXPECT(base[0] == 'a' && length_of_file() == 10 * (int64_t)page);
}

static int other_may_store, other_has_stored; /* atomic */
static _Thread_local volatile int waits_for_the_other;

/* The handler calls this first when it looks at growth: here one thread waits for the other. */
pid_t getpid(void)
{
    if (waits_for_the_other) {
        waits_for_the_other = 0;
        SET(other_may_store, 1);
        while (!GET(other_has_stored))
            continue;
    }
    return (pid_t)syscall(SYS_getpid);
}

static void *store_when_asked(void *at)
{
    while (!GET(other_may_store))
        continue;
    *(volatile char *)at = 'o';
    SET(other_has_stored, 1);
    return NULL;
}

/* Each time the page is there when the handler looks, because the other thread was quicker. A page
 * that was tried again before the file was cut says nothing about the page that is there now. */
static void growing_again_after_a_cut(void)
{
    char *base = map_growable(false);
    EXPECT(growth_truncate(&growth, file, 0, true) == 0);
    for (int turn = 0; turn < 3; turn++) {
        pthread_t other;
        SET(other_may_store, 0);
        SET(other_has_stored, 0);
        EXPECT(pthread_create(&other, NULL, store_when_asked, base + 9 * page) == 0);
        waits_for_the_other = 1;
        *(volatile char *)(base + 9 * page + 1) = 'u';
        EXPECT(pthread_join(other, NULL) == 0);
        EXPECT(faults_noted() == 0 && base[9 * page] == 'o' && base[9 * page + 1] == 'u');
        EXPECT(growth_truncate(&growth, file, 0, true) == 0);
    }
}

static const struct test_case cases[] = {
    {"growing", growing},
    {"growing_cut_off", growing_cut_off},
    {"growing_threads", growing_threads},
    {"growing_without_room", growing_without_room},
    {"growing_again_after_a_cut", growing_again_after_a_cut},
};

RUN_CASES
