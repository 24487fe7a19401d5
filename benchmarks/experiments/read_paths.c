/* read_paths.c: how long a warm read takes by each way into the page cache.
 *
 *     cc -O2 -o read_paths read_paths.c && ./read_paths FILE    (FILE of at least 64 MiB)
 *
 * docs/decisions.md has the figures, and what they decided.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SIZE ((size_t)64 << 20)

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

#define TIME(label, turns, statement)                                                             \
    do {                                                                                          \
        double start = now();                                                                     \
        for (long i = 0; i < (turns); i++) {                                                      \
            statement;                                                                            \
        }                                                                                         \
        printf("%-34s %10.0f ns\n", label, (now() - start) / (turns));                            \
    } while (0)

int main(int count, char **arguments)
{
    int fd = count == 2 ? open(arguments[1], O_RDONLY) : -1;
    char *map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
    char *to = malloc(1 << 20);
    unsigned char flags[256];
    static sigjmp_buf target;
    sigset_t mask, old;
    if (fd < 0 || map == MAP_FAILED || pread(fd, to, 1, SIZE - 1) != 1)
        return fprintf(stderr, "usage: read_paths FILE of at least %zu bytes\n", SIZE), 2;
    for (size_t at = 0; at < SIZE; at += 4096)
        *(volatile char *)(map + at);
    memset(to, 1, 1 << 20);
    sigemptyset(&mask);
    sigaddset(&mask, SIGBUS);
    struct iovec page = {to, 4096}, block = {to, 65536}, mebibyte = {to, 1 << 20};
#define PAGE_AT (i * 4096 * 7 % SIZE)
#define BLOCK_AT ((i << 16) % SIZE)
#define MEBIBYTE_AT ((i << 20) % SIZE)
    TIME("clock_gettime", 300000, now());
    TIME("sigsetjmp without mask", 300000, sigsetjmp(target, 0));
    TIME("pthread_sigmask", 300000, sigprocmask(SIG_UNBLOCK, &mask, &old));
    TIME("4 KiB preadv2 NOWAIT", 300000, preadv2(fd, &page, 1, PAGE_AT, RWF_NOWAIT));
    TIME("4 KiB mincore", 300000, mincore(map + PAGE_AT, 4096, flags));
    TIME("4 KiB memcpy", 300000, memcpy(to, map + PAGE_AT, 4096));
    TIME("64 KiB preadv2 NOWAIT", 30000, preadv2(fd, &block, 1, BLOCK_AT, RWF_NOWAIT));
    TIME("64 KiB mincore", 30000, mincore(map + BLOCK_AT, 65536, flags));
    TIME("64 KiB memcpy", 30000, memcpy(to, map + BLOCK_AT, 65536));
    TIME("1 MiB preadv2 NOWAIT", 3000, preadv2(fd, &mebibyte, 1, MEBIBYTE_AT, RWF_NOWAIT));
    TIME("1 MiB mincore", 3000, mincore(map + MEBIBYTE_AT, 1 << 20, flags));
    TIME("1 MiB memcpy", 3000, memcpy(to, map + MEBIBYTE_AT, 1 << 20));
    return 0;
}
