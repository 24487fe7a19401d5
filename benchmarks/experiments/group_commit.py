"""How fast can a group commit be on asyncio? The barest one, beside ours and the peers.

It has no checks, receipts or cancellation: only a list of futures, and one thread that calls
``pwritev`` and ``fdatasync`` for all of them. ``no disk`` is the same without the thread: tasks
await a future that a callback sets. Run it from the root of the repository, on a quiet machine:
``python -m benchmarks.experiments.group_commit``. Compare ratios only.
"""

from __future__ import annotations

import asyncio
import os
import queue
import tempfile
import threading

import aiofile
import aiofiles
from benchmarks._harness import MIB, Action, compare
from benchmarks.bench_durable import RECORD, peer_actions, slots

import aiommap

SIZE = 16 * MIB
Waiter = asyncio.Future[None]
at = slots(SIZE, ordered=True)


class Bare:
    """Futures in a list; a write that finds no group under way starts the next one."""

    def __init__(self, path: str | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = -1 if path is None else os.open(path, os.O_RDWR)
        self._waiting: list[tuple[int, Waiter]] = []
        self._busy = False
        self._jobs: queue.SimpleQueue[list[tuple[int, Waiter]]] = queue.SimpleQueue()
        if path is not None:
            threading.Thread(target=self._work, daemon=True).start()

    async def write(self, offset: int) -> None:
        waiter: Waiter = self._loop.create_future()
        self._waiting.append((offset, waiter))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._begin)
        await waiter

    def _begin(self) -> None:
        group, self._waiting = self._waiting, []
        if self._fd < 0:
            self._loop.call_soon(self._ended, group)
        else:
            self._jobs.put(group)

    def _work(self) -> None:
        while True:
            group = self._jobs.get()
            # They follow one another, but for the last slot of the file, which costs nothing here.
            os.pwritev(self._fd, [RECORD] * len(group), min(offset for offset, _ in group))
            os.fdatasync(self._fd)
            self._loop.call_soon_threadsafe(self._ended, group)

    def _ended(self, group: list[tuple[int, Waiter]]) -> None:
        for _, waiter in group:
            waiter.set_result(None)
        self._busy = bool(self._waiting)
        if self._busy:
            self._loop.call_soon(self._begin)


class Overlapping(Bare):
    """Two groups by turns: one is on its way to the disk while the tasks of the other run.

    A group begins as soon as half of those whom the last one answered have come again, and the
    thread goes on with what has gathered, if that is half a group, before anybody hands it over.
    """

    _last = 0

    async def write(self, offset: int) -> None:
        waiter: Waiter = self._loop.create_future()
        self._waiting.append((offset, waiter))
        if not self._busy and 2 * len(self._waiting) >= self._last:
            self._busy = True
            self._begin()
        await waiter

    def _begin(self) -> None:
        self._jobs.put(self._take())

    def _take(self) -> list[tuple[int, Waiter]]:
        """Take what waits; in two steps that the GIL makes safe beside ``append``."""
        group = self._waiting[:]
        del self._waiting[: len(group)]
        self._last = len(group)
        return group

    def _work(self) -> None:
        while True:
            group = self._jobs.get()
            while group:
                os.pwritev(self._fd, [RECORD] * len(group), min(offset for offset, _ in group))
                os.fdatasync(self._fd)
                following = self._take() if 2 * len(self._waiting) >= len(group) else []
                self._loop.call_soon_threadsafe(self._over, group, bool(following))
                group = following

    def _over(self, group: list[tuple[int, Waiter]], busy: bool) -> None:
        for _, waiter in group:
            waiter.set_result(None)
        if not busy:
            self._busy = False
            self._loop.call_soon(self._begin_rest)

    def _begin_rest(self) -> None:
        """Begin with the writes that came while a group was answered, if less than half of it."""
        if not self._busy and self._waiting:
            self._busy = True
            self._begin()


#: The peers of ``bench_durable``, by shorter names.
PEERS = ("thread", "aiofiles", "aiofile")


async def main() -> None:
    """Print medians of interleaved rounds."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            os.path.join(folder, name) for name in ("bare", "ours", "aiofiles", "caio", "th", "two")
        ]
        for path in paths:
            with open(path, "wb") as file:
                file.write(bytes(SIZE))
                os.fsync(file.fileno())
        bare, no_disk, two = Bare(paths[0]), Bare(None), Overlapping(paths[5])
        descriptor = os.open(paths[4], os.O_RDWR)
        always = aiommap.FlushPolicy.always()
        async with (
            aiommap.open(paths[1], "r+", flush=always) as mapped,
            aiofiles.open(paths[2], "r+b", buffering=0) as slow,
            aiofile.async_open(paths[3], "r+b") as caio,
        ):
            actions_of = peer_actions(descriptor, slow, caio, at).values()
            peers = dict(zip(PEERS, actions_of, strict=True))
            for tasks in (1, 64, 256):
                many, few = 8000 * min(tasks, 8), max(2 * tasks, 500)
                actions: dict[str, tuple[Action, int]] = {
                    "no disk": (lambda i: no_disk.write(at(i)), many),
                    "bare": (lambda i: bare.write(at(i)), many // 4),
                    "overlapping": (lambda i: two.write(at(i)), many // 4),
                    "aiommap": (lambda i: mapped.write(at(i), RECORD), many // 4),
                    **{name: (action, few) for name, action in peers.items()},
                }
                found = await compare(actions, tasks, 7)
                print(f"{tasks:>4} tasks  records/s        us  x thread  x aiofiles  x aiofile")
                for name, value in found.items():
                    ratios = [value / found[peer] for peer in PEERS]
                    line = f"{name:>11} {value:>10.0f} {1e6 / value:>9.2f}"
                    print(line, *(f"{ratio:>10.2f}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
