"""How many cold reads a second can any program make here: threads in C, fio, caio and ours.

Each runs once a round, in a random order, on a cold file. From the root of the repository, on a
quiet machine: ``python -m benchmarks.experiments.cold_ceiling [rounds]``; take ratios. Where the
kernel tells how much processor time all programs used, a measurement is made again if the others
used more than a twentieth of the processors beside it.

No library can begin a read of a ``gather`` before asyncio has made all the tasks, so the last lines
add that time to what the threads in C take for as many reads: no library is faster. Beside that
they print what 1.4 and 1.2 times caio would be.

caio's ring has a thread of the kernel that spins for 0.1 s and then sleeps. So its ``gather`` runs
after another one of its own, as in the benchmark. At real-time priority that thread has it, too,
and holds up other threads of the kernel: then only caio's best rounds count.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from benchmarks._harness import MIB, make_cold, scratch_file
from benchmarks.bench_cold import PAGE, READ, Rounds, peers

import aiommap
from aiommap import Advice

SIZE = 256 * MIB
AT_ONCE = 1000
READS = 20000
OTHERS_MOST = 0.05
TRIES = 20
#: Nanoseconds that all programs have used; only version 1 of control groups has it.
USAGE = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")
CAIO_TASKS = "64 tasks: caio linux_uring"
CAIO_GATHER = "gather: caio linux_uring"
MAKING = "gather: asyncio makes the tasks"
#: Reads a second, and microseconds of processor time for each.
Found = tuple[float, float]
Measure = Callable[[], Awaitable[Found]]


def used_by_all() -> float:
    """Return seconds of processor time, or 0 where the kernel does not tell."""
    return int(USAGE.read_text("ascii")) / 1e9 if USAGE.exists() else 0.0


def used_by_us() -> float:
    """Return seconds of this process and of all that it waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


async def alone(measure: Measure) -> Found:
    """Measure, again if other programs ran beside it."""
    for _ in range(TRIES):
        started, everybody, ours = time.perf_counter(), used_by_all(), used_by_us()
        found = await measure()
        others = used_by_all() - everybody - (used_by_us() - ours)
        if others < OTHERS_MOST * (time.perf_counter() - started) * (os.cpu_count() or 1):
            break
    return found


async def threads(program: str, path: str, count: int, reads: int) -> Found:
    """Let cold_ceiling.c read."""
    command = [program, path, str(count), str(reads)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    rate, cpu = map(float, done.stdout.split())
    return rate, cpu


async def first_step(count: int) -> Found:
    """Gather tasks that wait for bare futures; return as a rate when the first one ran.

    The second figure is the processor time of each task to its end, which is asyncio's alone.
    """
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []
    begun = 0.0

    async def wait() -> None:
        nonlocal begun
        begun = begun or time.perf_counter()
        waiting.append(loop.create_future())
        await waiting[-1]

    def wake() -> None:
        for future in waiting:
            future.set_result(None)

    loop.call_soon(loop.call_soon, wake)
    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(wait() for _ in range(count)))
    return count / (begun - start), (time.process_time() - cpu) / count * 1e6


async def warm_gather(cold: Rounds, read: READ) -> Found:
    """Gather twice at once, and return the second one."""
    await cold.gather(read, AT_ONCE)
    return await cold.gather(read, AT_ONCE)


def limits(rates: dict[str, float]) -> dict[str, float]:
    """Return what no library exceeds, and the aims in terms of caio."""
    in_c = {name: rate for name, rate in rates.items() if name.startswith("C, ")}
    at_once = max(rate for name, rate in in_c.items() if name.endswith(" reads"))
    steady = max(rate for name, rate in in_c.items() if not name.endswith(" reads"))
    return {
        "gather: no library makes more": 1 / (1 / rates[MAKING] + 1 / at_once),
        "gather: 1.4 x caio": 1.4 * rates[CAIO_GATHER],
        "64 tasks: C makes": steady,
        "64 tasks: 1.2 x caio": 1.2 * rates[CAIO_TASKS],
    }


async def fio(path: str, jobs: int, *options: str) -> Found:
    """Let fio read; each of its jobs has a part of the file of its own."""
    make_cold(path)
    part = SIZE // jobs // PAGE * PAGE
    command = [
        *("fio", "--name=cold", f"--filename={path}", "--rw=randread", "--bs=4k", "--readonly"),
        *("--thread", f"--numjobs={jobs}", "--group_reporting", "--fadvise_hint=random"),
        *(f"--size={part}", f"--offset_increment={part}", f"--number_ios={READS // jobs}"),
        *("--output-format=json", *options),
    ]
    before = used_by_us()
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    done.check_returncode()
    spent = used_by_us() - before  # with its start, some tenths of a microsecond for each
    found = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    return found["iops"], spent / found["total_ios"] * 1e6


async def main(rounds: int) -> None:
    """Print the median and the best of each way over so many rounds, and what follows."""
    found: dict[str, list[Found]] = {}
    async with AsyncExitStack() as stack:
        path = stack.enter_context(scratch_file(SIZE))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        program = f"{folder}/cold_ceiling"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
        mapped = await stack.enter_async_context(aiommap.open(path, advice=Advice.RANDOM))
        caio = (await peers(path, stack))["caio linux_uring"]
        cold = Rounds(path, mapped)
        ways: dict[str, Measure] = {
            "64 tasks: aiommap": partial(cold.rate, lambda at: mapped.read(at, PAGE), READS, 64),
            CAIO_TASKS: partial(cold.rate, caio, READS, 64),
            "gather: aiommap": partial(cold.gather, lambda at: mapped.read(at, PAGE), AT_ONCE),
            CAIO_GATHER: partial(warm_gather, cold, caio),
            MAKING: partial(first_step, AT_ONCE),
        }
        for count in (16, 40, 64):
            ways[f"C, {count} threads"] = partial(threads, program, path, count, READS)
            ways[f"fio psync, {count} jobs"] = partial(fio, path, count, "--ioengine=psync")
        for count in (40, 64, 256):
            label = f"C, {count} threads, {AT_ONCE} reads"
            ways[label] = partial(threads, program, path, count, AT_ONCE)
        for engine in ("io_uring", "libaio"):
            deep = (f"--ioengine={engine}", "--iodepth=64")
            ways[f"fio {engine}, depth 64, direct"] = partial(fio, path, 1, *deep, "--direct=1")
        deep = ("--ioengine=io_uring", "--iodepth=64")
        ways["fio io_uring, depth 64"] = partial(fio, path, 1, *deep)
        for _ in range(rounds):
            for name in random.sample(list(ways), len(ways)):
                make_cold(path)
                found.setdefault(name, []).append(await alone(ways[name]))
                await asyncio.sleep(0.2)  # the kernel's thread of caio's ring spins for 0.1 s
    medians, best = {}, {}
    for name in ways:
        rates, cpus = zip(*found[name], strict=True)
        medians[name], best[name] = statistics.median(rates), max(rates)
        cpu = statistics.median(cpus)
        print(f"{name:34} {medians[name]:8.0f}/s, best {best[name]:8.0f}/s  {cpu:6.2f} us")
    for name, rate in limits(medians).items():
        print(f"{name:34} {rate:8.0f}/s, best {limits(best)[name]:8.0f}/s")


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
