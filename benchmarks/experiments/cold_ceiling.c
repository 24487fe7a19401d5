/* cold_ceiling.c: the most cold reads of 4 KiB that threads which do nothing else make of a file.
 *
 *     cc -O2 -pthread -o cold_ceiling cold_ceiling.c && ./cold_ceiling FILE THREADS READS
 *
 * Prints reads a second and microseconds of processor time for each. The pages are in a random
 * order, and each thread takes the next one as soon as it has read one: no queue, no loop, nobody
 * to be told. The threads start together, so a thousand reads count as asked for at once.
 * cold_ceiling.py runs it beside others; see docs/decisions.md.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define THREADS_MAX 1024

static int fd;
static long reads, next_read;
static long *pages;
static pthread_barrier_t start;

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

static void draw(void)
{
    long count = lseek(fd, 0, SEEK_END) / PAGE;
    pages = malloc(count * sizeof *pages);
    if (!pages || count < reads)
        abort();
    srand48((long)now(CLOCK_REALTIME));
    for (long i = 0; i < count; i++)
        pages[i] = i;
    for (long i = 0; i < reads; i++) {
        long other = i + (long)(drand48() * (double)(count - i)), page = pages[i];
        pages[i] = pages[other];
        pages[other] = page;
    }
}

static void *work(void *unused)
{
    char page[PAGE];
    pthread_barrier_wait(&start);
    for (long at; (at = __atomic_fetch_add(&next_read, 1, __ATOMIC_RELAXED)) < reads;)
        if (pread(fd, page, PAGE, (off_t)pages[at] * PAGE) != PAGE)
            abort();
    return unused;
}

int main(int count, char **arguments)
{
    pthread_t threads[THREADS_MAX];
    if (count != 4 || (fd = open(arguments[1], O_RDONLY)) < 0)
        return 1;
    int wanted = atoi(arguments[2]);
    reads = atol(arguments[3]);
    if (wanted < 1 || wanted > THREADS_MAX)
        return 1;
    draw();
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    pthread_barrier_init(&start, NULL, (unsigned)wanted + 1);
    for (int i = 0; i < wanted; i++)
        if (pthread_create(&threads[i], NULL, work, NULL))
            abort();
    double cpu = now(CLOCK_PROCESS_CPUTIME_ID), since = now(CLOCK_MONOTONIC);
    pthread_barrier_wait(&start);
    for (int i = 0; i < wanted; i++)
        pthread_join(threads[i], NULL);
    double took = now(CLOCK_MONOTONIC) - since;
    cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("%.0f %.2f\n", (double)reads / took * 1e6, cpu / (double)reads);
    return 0;
}
