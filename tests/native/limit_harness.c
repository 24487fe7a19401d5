/* limit_harness.c: faults at vm.max_map_count, see harness.h. */
#include "harness.h"

#include "spare.h"

enum { FILES = 20, FILE_PAGES = 16 };

static char *bases[FILES];
static struct damage noted[FILES];
static void *taken; /* a list through the first word of each page */

/* Map pages until the kernel refuses. They are shared, so the kernel merges no two of them. */
static size_t take_all(void)
{
    size_t count = 0;
    for (;; count++) {
        void **one = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (one == MAP_FAILED)
            return count;
        *one = taken;
        taken = one;
    }
}

static void give_back(size_t count)
{
    while (count--) {
        void **one = taken;
        taken = *one;
        EXPECT(munmap(one, page) == 0);
    }
}

static void map_files(void)
{
    EXPECT(ftruncate(file, (off_t)(FILE_PAGES * page)) == 0);
    for (size_t i = 0; i < FILES; i++) {
        size_t length = FILE_PAGES * page;
        int protection = PROT_READ | PROT_WRITE;
        noted[i] = (struct damage){.first_bad = DAMAGE_NONE};
        bases[i] = mmap(NULL, length, protection, MAP_SHARED, file, 0);
        EXPECT(bases[i] != MAP_FAILED);
        EXPECT(add_mapping((uintptr_t)bases[i], length, protection, &noted[i], NULL,
                                       NULL));
    }
}

/* More files than there are spare mappings, each faulting from its end to its middle. */
static void limit_of_mappings(void)
{
    map_files();
    size_t count = take_all();
    truncate_to(8);
    for (size_t number = FILE_PAGES; number-- > 8;)
        for (size_t i = 0; i < FILES; i++) {
            *(volatile char *)(bases[i] + number * page) = 's';
            EXPECT(bases[i][number * page] == 's' && is_damaged(&noted[i]));
        }
    EXPECT(*bases[0] == 'm' && *mapped == 'm'); /* what was not lost is still there */
    EXPECT(guard_copy(plain, mapped, PAGES * page, NULL) == PAGES * page);
    truncate_to(0);
    EXPECT(guard_copy(plain, mapped, PAGES * page, NULL) == 0 && !is_damaged(&damage));
    for (size_t i = 0; i < FILES; i++)
        EXPECT(*(volatile char *)bases[i] == 0);
    give_back(count);
}

static pthread_barrier_t at_the_limit;

static void *store_everywhere(void *unused)
{
    pthread_barrier_wait(&at_the_limit);
    for (size_t number = FILE_PAGES; number-- > 0;)
        for (size_t i = 0; i < FILES; i++)
            *(volatile char *)(bases[i] + number * page + 1) = 't';
    return unused;
}

static void limit_in_threads(void)
{
    pthread_t thread[4];
    map_files();
    EXPECT(pthread_barrier_init(&at_the_limit, NULL, 5) == 0);
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_create(&thread[i], NULL, store_everywhere, NULL) == 0);
    size_t count = take_all();
    truncate_to(0);
    pthread_barrier_wait(&at_the_limit);
    for (size_t i = 0; i < 4; i++)
        EXPECT(pthread_join(thread[i], NULL) == 0);
    give_back(count);
    for (size_t i = 0; i < FILES; i++)
        EXPECT(is_damaged(&noted[i]));
}

/* The guard takes spares again once there is room. */
static void limit_lifted(void)
{
    while (spare_give_up())
        continue;
    size_t count = take_all();
    guard_refresh();
    EXPECT(spare_count() == 0);
    give_back(count);
    guard_refresh();
    EXPECT(spare_count() > 2);
}

static const struct test_case cases[] = {
    {"limit_of_mappings", limit_of_mappings},
    {"limit_in_threads", limit_in_threads},
    {"limit_lifted", limit_lifted},
};

RUN_CASES
