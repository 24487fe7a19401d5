/* log_ceiling.c: the most durable records of 152 bytes that any program can append here.
 *
 *     cc -O2 -pthread -o log_ceiling log_ceiling.c
 *     ./log_ceiling FILE SYNC FORM RECORDS MILLISECONDS
 *
 * Prints records a second. A commit stores RECORDS records behind the last commit, by one call into a
 * file that has its blocks already, and makes them durable by SYNC: "fdatasync", "O_DSYNC", "RWF_DSYNC",
 * or "O_DIRECT", which is O_DIRECT with O_DSYNC and writes whole blocks of 4 KiB, from a new block on
 * each time. There are no frames, checksums, numbers or readers. FORM is who does it:
 *
 *   alone   one thread, one commit after the other
 *   halves  two threads, each with half of the records, both at the same time
 *   loop    a thread for a loop that must not wait: one thread sleeps in epoll and tells another one,
 *           which commits and answers, by an eventfd each way
 *   serve   the second of those threads alone, for another program: it inherits the two eventfds, whose
 *           numbers stand in place of RECORDS and MILLISECONDS, and writes to the first how many records
 *           to commit, or 2^32 to end; nothing is printed
 *
 * log_ceiling.py runs it beside others; see docs/decisions.md.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define RECORD_BYTES 152
#define BLOCK_BYTES 4096
#define STOP (UINT64_C(1) << 32)
#define RECORDS_MAX 1024

static int fd, asked, answered;
static int write_flags;
static int calls_fdatasync, whole_blocks;
static off_t size, at;
static double deadline;
static long commits;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

static void commit(char *from, long records)
{
    off_t bytes = records * RECORD_BYTES;
    if (whole_blocks)
        bytes = (bytes + BLOCK_BYTES - 1) & -(off_t)BLOCK_BYTES;
    struct iovec one = {from, (size_t)bytes};
    off_t place = __atomic_fetch_add(&at, bytes, __ATOMIC_RELAXED);
    if (place + bytes > size || pwritev2(fd, &one, 1, place, write_flags) != bytes)
        abort(); /* was the file too small for the time? */
    if (calls_fdatasync && fdatasync(fd))
        abort();
}

static char *bytes_for(long records)
{
    size_t bytes = (size_t)records * RECORD_BYTES + BLOCK_BYTES;
    char *from = aligned_alloc(BLOCK_BYTES, (bytes + BLOCK_BYTES - 1) & -(size_t)BLOCK_BYTES);
    if (!from)
        abort();
    memset(from, 'r', bytes);
    return from;
}

static void *commit_until_deadline(void *records)
{
    char *from = bytes_for((intptr_t)records);
    for (; now() < deadline; __atomic_fetch_add(&commits, 1, __ATOMIC_RELAXED))
        commit(from, (intptr_t)records);
    return NULL;
}

static void *commit_when_asked(void *unused)
{
    char *from = bytes_for(RECORDS_MAX);
    uint64_t records, one = 1;
    while (read(asked, &records, sizeof records) == sizeof records && records <= RECORDS_MAX) {
        commit(from, (long)records);
        if (write(answered, &one, sizeof one) != sizeof one)
            abort();
    }
    return unused;
}

static void loop(uint64_t records)
{
    pthread_t thread;
    uint64_t got, stop = STOP;
    asked = eventfd(0, 0);
    answered = eventfd(0, EFD_NONBLOCK);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, answered, &event) ||
        pthread_create(&thread, NULL, commit_when_asked, NULL))
        abort();
    for (; now() < deadline; commits++)
        if (write(asked, &records, sizeof records) != sizeof records ||
            epoll_wait(epoll, &event, 1, -1) != 1 ||
            read(answered, &got, sizeof got) != sizeof got)
            abort();
    if (write(asked, &stop, sizeof stop) != sizeof stop)
        abort();
    pthread_join(thread, NULL);
}

int main(int count, char **arguments)
{
    if (count != 6)
        return 1;
    const char *sync = arguments[2], *form = arguments[3];
    long records = atol(arguments[4]);
    whole_blocks = !strcmp(sync, "O_DIRECT");
    calls_fdatasync = !strcmp(sync, "fdatasync");
    write_flags = strcmp(sync, "RWF_DSYNC") ? 0 : RWF_DSYNC;
    int flags = whole_blocks ? O_DIRECT | O_DSYNC : strcmp(sync, "O_DSYNC") ? 0 : O_DSYNC;
    if ((fd = open(arguments[1], O_WRONLY | flags)) < 0)
        return 1;
    size = lseek(fd, 0, SEEK_END);
    if (!strcmp(form, "serve")) {
        asked = atoi(arguments[4]);
        answered = atoi(arguments[5]);
        commit_when_asked(NULL);
        return 0;
    }
    double began = now();
    deadline = began + atof(arguments[5]);
    if (!strcmp(form, "halves")) {
        pthread_t other;
        intptr_t half = records / 2;
        if (!half || pthread_create(&other, NULL, commit_until_deadline, (void *)half))
            return 1;
        commit_until_deadline((void *)half);
        pthread_join(other, NULL);
        records = half;
    } else if (!strcmp(form, "loop")) {
        loop((uint64_t)records);
    } else {
        commit_until_deadline((void *)(intptr_t)records);
    }
    printf("%.0f\n", (double)(commits * records) / (now() - began) * 1e3);
    return 0;
}
