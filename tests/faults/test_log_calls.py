"""Logs whose system calls are interrupted, cut short or refused, or whose clock is wrong."""

from __future__ import annotations

import pytest

from tests.support.fork_server import run_code
from tests.support.logs import pure_records
from tests.support.shims import compile_shim, preloaded

pytestmark = pytest.mark.slow

#: System calls of a log that fail as FAULT says; at its end the process reports how often they
#: did. CPython calls the names with 64.
CALLS = r"""
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>

static __thread unsigned calls;
static int faults;
static int fault_is(const char *name)
{
    const char *fault = getenv("FAULT");
    return fault && !strcmp(fault, name);
}
/* Every other call of a thread is interrupted. */
static int interrupted(void)
{
    if (!fault_is("interrupted") || calls++ % 2)
        return 0;
    __atomic_add_fetch(&faults, 1, __ATOMIC_RELAXED);
    errno = EINTR;
    return 1;
}
/* With FAULT=full, the NTH call that makes a name finds no room. */
static int full(void)
{
    static int names;
    if (!fault_is("full") || ++names != atoi(getenv("NTH")))
        return 0;
    faults++;
    errno = ENOSPC;
    return 1;
}
/* A part of the bytes is written, and never all of them. */
static size_t part(size_t length)
{
    if (!fault_is("short") || length < 2)
        return length;
    __atomic_add_fetch(&faults, 1, __ATOMIC_RELAXED);
    return 1 + length / 3;
}
__attribute__((destructor)) static void tell(void) { fprintf(stderr, "faults: %d\n", faults); }

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(name)                                                                       \
    ssize_t name(int fd, const void *from, size_t length, off_t at)                        \
    {                                                                                      \
        return interrupted() ? -1 : NEXT(name)(fd, from, part(length), at);                \
    }
#define READS(name)                                                                        \
    ssize_t name(int fd, void *to, size_t length, off_t at)                                \
    {                                                                                      \
        return interrupted() ? -1 : NEXT(name)(fd, to, length, at);                        \
    }
#define SYNCS(name) int name(int fd) { return interrupted() ? -1 : NEXT(name)(fd); }
#define RESERVES(name)                                                                     \
    int name(int fd, int mode, off_t at, off_t length)                                     \
    {                                                                                      \
        return interrupted() ? -1 : NEXT(name)(fd, mode, at, length);                      \
    }
WRITES(pwrite)
WRITES(pwrite64)
READS(pread)
READS(pread64)
SYNCS(fsync)
SYNCS(fdatasync)
RESERVES(fallocate)
RESERVES(fallocate64)

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    return full() ? -1 : NEXT(linkat)(from, old, to, new, flags);
}

/* preadv2(2) by number. */
long syscall(long number, ...)
{
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    if (number == SYS_preadv2 && interrupted())
        return -1;
    return NEXT(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* The time of day jumps by a day each time, forward and back, or stands still. */
static long told(long seconds)
{
    if (!fault_is("jumps") && !fault_is("stands"))
        return seconds;
    int turn = __atomic_add_fetch(&faults, 1, __ATOMIC_RELAXED);
    return fault_is("stands") ? 1000000000 : seconds + (turn % 2 ? -86400 : 86400) * (turn % 40);
}
int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = NEXT(clock_gettime)(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec = told(now->tv_sec);
    return failed;
}
int gettimeofday(struct timeval *now, void *zone)
{
    int failed = NEXT(gettimeofday)(now, zone);
    now->tv_sec = told(now->tv_sec);
    return failed;
}
time_t time(time_t *now)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now)
        *now = found.tv_sec;
    return found.tv_sec;
}
"""

#: Everything a log does: all ways to append, rolls, discards, flushes, recoveries, reading, a tail.
ALL = """
import os, sys, time, anyio, aiommap
from aiommap import FlushPolicy, Log

folder, backend = sys.argv[1:]
POLICIES = [FlushPolicy.manual(), FlushPolicy.always(), FlushPolicy.every_writes(3),
            FlushPolicy.never()]
expected = {}

def data(number):
    return b"%d " % number * (1 + number * 389 % 2500)

async def append(log, count):
    for _ in range(count):
        number = log.last + 1
        receipt = await log.append(data(number))
        assert receipt.sequence == number
    receipt = await log.append_many([data(log.last + i) for i in range(1, 9)])
    await receipt.wait_durable()
    assert log.durable == log.last

async def follow(reader, start, end):
    async for record in reader.tail(start):
        assert record.data == data(record.sequence)
        if record.sequence == end:
            return

async def main():
    time.time()
    for life, policy in enumerate(POLICIES, 1):
        async with Log.open(folder, flush=policy, segment_size=1 << 16) as log:
            assert (log.life, log.last) == (life, 38 * (life - 1)), (log, log.recovered)
            async with Log.open(folder, "r") as reader, anyio.create_task_group() as group:
                group.start_soon(follow, reader, log.last + 1, 38 * life)
                await append(log, 30)
            await log.discard(log.last - 10)
            found = [record async for record in log.read()]
            assert [record.sequence for record in found] == list(range(log.first, log.last + 1))
            assert all(record.data == data(record.sequence) for record in found)
        for name in os.listdir(folder):
            os.utime(os.path.join(folder, name), (life, life))
        if life == 2:
            os.unlink(os.path.join(folder, "control"))
    print("done")

options = {"use_uvloop": True} if backend == "uvloop" else {}
anyio.run(main, backend=backend.replace("uvloop", "asyncio"), backend_options=options)
"""


#: Only the script itself asks for the time of day.
CLOCKS = ("jumps", "stands")


@pytest.mark.parametrize("fault", ["interrupted", "short", *CLOCKS])
def test_all_a_log_does(tmp_path, fault):
    """The program sees no error, and the log has exactly the records that were appended."""
    environment = preloaded(compile_shim(tmp_path, CALLS)) | {"FAULT": fault}
    done = run_code(ALL, tmp_path / "log", "asyncio", environment=environment, timeout=150)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert int(done.stderr.rpartition("faults: ")[2]) >= (1 if fault in CLOCKS else 100)
    numbers = [sequence for sequence, _, _ in pure_records(tmp_path / "log")]
    assert numbers[-1] == 152
    assert numbers == list(range(numbers[0], 153))


FULL = """
import errno, sys, anyio, aiommap

async def main():
    stored = refused = 0
    async with aiommap.Log.open(sys.argv[1], segment_size=1 << 16) as log:
        while stored < 30:
            try:
                await log.append(bytes(9000))
            except OSError as error:
                assert error.errno == errno.ENOSPC and not isinstance(error, aiommap.FlushError)
                assert "make room, or discard records" in str(error)
                refused += 1
            else:
                stored += 1
            assert log.last == stored
        assert refused == 1
        assert len([record async for record in log.read()]) == 30

async def opened():
    try:
        await main()
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        print("refused")
        await main()
    print("done")

anyio.run(opened)
"""


@pytest.mark.parametrize("nth", [1, 2])
def test_no_room_for_a_name(tmp_path, nth):
    """The opening or the append at the roll fails, and the next one does not."""
    environment = preloaded(compile_shim(tmp_path, CALLS)) | {"FAULT": "full", "NTH": str(nth)}
    code = FULL.replace("refused == 1", "True") if nth == 1 else FULL
    done = run_code(code, tmp_path / "log", environment=environment, timeout=150)
    assert (done.returncode, done.stdout) == (0, "refused\ndone\n" if nth == 1 else "done\n"), (
        done.stderr
    )
    assert done.stderr.endswith("faults: 1\n")
    assert len(pure_records(tmp_path / "log")) == 30
