/* store_stalls.c: how long one store into a resident page of a shared mapping can take.
 *
 *     cc -O2 -pthread -o store_stalls store_stalls.c && ./store_stalls FILE   (64 MiB, overwritten)
 *
 * The answer decides when a store may run on the event loop's thread; see docs/decisions.md.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SIZE ((size_t)64 << 20)
#define STORES 150000

static int fd;
static char *map;
static volatile bool stop;
static double took[STORES];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

static void *flush_all(void *unused)
{
    while (!stop)
        fdatasync(fd);
    return unused;
}

static void *flush_first_half(void *unused)
{
    while (!stop)
        msync(map, SIZE / 2, MS_SYNC);
    return unused;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run(const char *label, void *(*flusher)(void *), size_t from, bool clean)
{
    pthread_t thread;
    stop = false;
    if (flusher)
        pthread_create(&thread, NULL, flusher, NULL);
    for (size_t at = 0; at < SIZE; at += 4096)
        map[at]++;
    for (long i = 0; i < STORES; i++) {
        if (clean && !flusher && i % 16384 == 0)
            fdatasync(fd);
        char *at = map + from + (size_t)rand() * 4096 % (SIZE - from);
        double start = now();
        *at = (char)i;
        took[i] = now() - start;
        if (i % 50 == 0)
            usleep(1000); /* spread the stores over many flushes */
    }
    stop = true;
    if (flusher)
        pthread_join(thread, NULL);
    qsort(took, STORES, sizeof *took, compare);
    printf("%-38s p50 %6.2f  p99 %6.1f  p99.9 %6.1f  max %7.1f us\n", label, took[STORES / 2],
           took[STORES / 100 * 99], took[STORES / 1000 * 999], took[STORES - 1]);
}

int main(int count, char **arguments)
{
    fd = count == 2 ? open(arguments[1], O_RDWR | O_CREAT, 0600) : -1;
    if (fd < 0 || posix_fallocate(fd, 0, SIZE))
        return fprintf(stderr, "usage: store_stalls FILE\n"), 2;
    map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    run("already dirty pages", NULL, 0, false);
    run("clean pages", NULL, 0, true);
    run("a flush over the other half", flush_first_half, SIZE / 2, false);
    run("a flush over the same pages", flush_all, 0, false);
    return 0;
}
