/* harness.h: what the harnesses share: each run is one case, over one file, without Python.
 *
 * Usage: HARNESS CASE FILE. The harness makes FILE, with four pages, or empties it first. A case
 * that holds exits 0; one that does not prints the broken expectation and exits 1. The foreign_*
 * cases die of SIGBUS.
 *
 * A harness includes this header, defines `cases` and ends with RUN_CASES.
 */
#ifndef AIOMMAP_HARNESS_H
#define AIOMMAP_HARNESS_H

#include "growth.h"
#include "guard.h"
#include "fault_table.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define PAGES 4

#define EXPECT(condition)                                                                         \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "line %d: expected %s\n", __LINE__, #condition);                      \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

#define add_mapping(...) fault_table_add(&(struct fault_mapping){__VA_ARGS__})

#define GET(variable) __atomic_load_n(&(variable), __ATOMIC_SEQ_CST)
#define SET(variable, value) __atomic_store_n(&(variable), (value), __ATOMIC_SEQ_CST)

static size_t page;
static char *mapped;   /* PAGES pages of the file */
static int file;
static char *plain;    /* as many bytes of ordinary memory */

static inline void set_up(const char *path)
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

static inline void truncate_to(size_t pages)
{
    EXPECT(ftruncate(file, (off_t)(pages * page)) == 0);
}

static struct damage damage = {.first_bad = DAMAGE_NONE};

/* The handler changes it behind the back of the compiler. */
static inline uint64_t faults_noted(void)
{
    return __atomic_load_n(&damage.faults, __ATOMIC_SEQ_CST);
}

struct test_case {
    const char *name;
    void (*run)(void);
};

static inline int run_case(const struct test_case *cases, size_t number, int count, char **arguments)
{
    for (size_t i = 0; count == 3 && i < number; i++) {
        if (strcmp(arguments[1], cases[i].name) != 0)
            continue;
        set_up(arguments[2]);
        EXPECT(guard_install() == 0);
        cases[i].run();
        return 0;
    }
    fprintf(stderr, "usage: HARNESS CASE FILE\n");
    return 2;
}

#define RUN_CASES                                                                                 \
    int main(int count, char **arguments)                                                         \
    {                                                                                             \
        return run_case(cases, sizeof cases / sizeof *cases, count, arguments);                   \
    }

#endif
