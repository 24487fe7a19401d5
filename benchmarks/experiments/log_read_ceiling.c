/* log_read_ceiling.c: the least that reading records of 4 KiB takes with a checksum, without Python.
 *
 *     cc -O2 -I src/aiommap/_csrc/sys -o log_read_ceiling log_read_ceiling.c src/aiommap/_csrc/sys/crc32c.c
 *     ./log_read_ceiling SEGMENT RECORDS
 *
 * Each way checks the CRC32C of each record and makes a new object of it, as large as a bytes object of
 * Python; the last one is freed once the next is there. Prints the nanoseconds of a record, the best of
 * nine walks: through windows of 256 KiB and of 2 MiB, aligned to pages, that pread fills; from a mapping
 * that each walk makes; from one that stays; then the first and the last of these once more, each record
 * copied and summed at once. Last comes what pread alone takes for as many bytes, from whole pages to a
 * place 16 bytes into a page. log_read_ceiling.py runs it beside a log.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "crc32c.h"

enum { SEGMENT_HEADER = 4096, FRAME_HEADER = 24, DATA = 4096, FRAME = FRAME_HEADER + DATA };
enum { OBJECT_HEADER = 32, WALKS = 9 };

static int fd;
static long records;
static size_t bytes;
static char *window, *mapping;
static volatile uint32_t sums;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static bool at_once;
/* Of a constant length the compiler would copy by instructions of its own; Python calls memcpy. */
static volatile size_t data_bytes = DATA;

static char *take(char *last, const char *from)
{
    char *object = malloc(OBJECT_HEADER + DATA + 1);
    if (!object)
        abort();
    if (at_once) {
        sums ^= crc32c_copy(0, object + OBJECT_HEADER, from, data_bytes);
    } else {
        memcpy(object + OBJECT_HEADER, from, data_bytes);
        sums ^= crc32c(0, object + OBJECT_HEADER, DATA);
    }
    free(last);
    return object;
}

static void read_by(size_t window_bytes)
{
    char *last = NULL;
    long each = (long)window_bytes / FRAME;
    off_t at = SEGMENT_HEADER;
    for (long left = records; left > 0; left -= each, at += each * FRAME) {
        long count = left < each ? left : each;
        if (pread(fd, window, (size_t)(count * FRAME), at) != count * FRAME)
            abort();
        for (long i = 0; i < count; i++)
            last = take(last, window + i * FRAME + FRAME_HEADER);
    }
    free(last);
}

static void read_small(void) { read_by((size_t)256 << 10); }
static void read_large(void) { read_by((size_t)2 << 20); }

static void read_askew(void)
{
    for (off_t at = 0; at < (off_t)bytes; at += 256 << 10)
        if (pread(fd, window + 16, 256 << 10, at) < 0)
            abort();
}

static void map(void)
{
    mapping = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (mapping == MAP_FAILED)
        abort();
}

static void copy_mapped(void)
{
    char *last = NULL;
    for (long i = 0; i < records; i++)
        last = take(last, mapping + SEGMENT_HEADER + i * FRAME + FRAME_HEADER);
    free(last);
}

static void map_and_copy(void)
{
    map();
    copy_mapped();
    munmap(mapping, bytes);
}

static void measure(void (*walk)(void))
{
    double best = 0;
    for (int i = 0; i < WALKS; i++) {
        double since = now();
        walk();
        double took = now() - since;
        best = i && best < took ? best : took;
    }
    printf("%.0f\n", best / (double)records);
}

int main(int count, char **arguments)
{
    if (count != 3 || (fd = open(arguments[1], O_RDONLY)) < 0)
        return 1;
    records = atol(arguments[2]);
    bytes = (size_t)(SEGMENT_HEADER + records * FRAME);
    window = aligned_alloc(4096, (size_t)4 << 20);
    if (!window)
        return 1;
    measure(read_small);
    measure(read_large);
    measure(map_and_copy);
    map();
    measure(copy_mapped);
    at_once = true;
    measure(read_small);
    measure(copy_mapped);
    measure(read_askew);
    return 0;
}
