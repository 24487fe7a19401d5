/* read_atime.c: how long a NOWAIT read of warm data takes while the file system's journal is busy.
 *
 *     truncate -s 600M image && mkfs.ext4 -q -J size=4 image && mount -o loop image MOUNT
 *     cc -O2 -o read_atime read_atime.c && ./read_atime MOUNT
 *
 * A read updates the access time in the inode. For that it joins the journal, and RWF_NOWAIT does not
 * keep it from waiting there. The program reads through two descriptors of one file in turn, one of
 * them O_NOATIME, while other processes store to the file and make and remove files. See
 * docs/decisions.md.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGES 256
#define PAGE 4096
#define READS 60000

static char page[PAGE];
static double took[2][READS];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

static void store_for_ever(int fd)
{
    for (int i = 0;; i++) {
        if (pwrite(fd, page, 128, i % 32 * PAGE) < 0 || fsync(fd))
            _exit(1);
    }
}

static void make_and_remove_files(int number)
{
    char name[64];
    for (;;) {
        for (int i = 0; i < 400; i++) {
            snprintf(name, sizeof name, "%d-%d", number, i);
            int fd = open(name, O_CREAT | O_WRONLY, 0600);
            if (fd < 0 || write(fd, page, PAGE) < 0)
                _exit(1);
            close(fd);
        }
        for (int i = 0; i < 400; i++) {
            snprintf(name, sizeof name, "%d-%d", number, i);
            unlink(name);
        }
    }
}

static void spawn(void (*work)(int), int argument)
{
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        work(argument);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **arguments)
{
    if (count != 2 || chdir(arguments[1]))
        return fprintf(stderr, "usage: read_atime FOLDER\n"), 2;
    int plain = open("read", O_RDWR | O_CREAT, 0600), quiet = open("read", O_RDWR | O_NOATIME);
    for (int i = 0; i < PAGES; i++) {
        if (pwrite(plain, page, PAGE, i * PAGE) != PAGE)
            return perror("pwrite"), 1;
    }
    spawn(store_for_ever, plain);
    spawn(make_and_remove_files, 1);
    spawn(make_and_remove_files, 2);
    const int descriptors[2] = {plain, quiet};
    for (long i = 0; i < 2 * READS; i++) {
        struct iovec piece = {page, PAGE};
        double start = now();
        preadv2(descriptors[i % 2], &piece, 1, (off_t)(128 + rand() % 64) * PAGE, RWF_NOWAIT);
        took[i % 2][i / 2] = now() - start;
        usleep(20);
    }
    for (int i = 0; i < 2; i++) {
        qsort(took[i], READS, sizeof *took[i], compare);
        printf("%-10s p50 %6.1f  p99 %7.1f  p99.9 %7.1f  max %7.1f us\n", i ? "O_NOATIME" : "plain",
               took[i][READS / 2], took[i][READS / 100 * 99], took[i][READS / 1000 * 999],
               took[i][READS - 1]);
    }
    return 0;
}
