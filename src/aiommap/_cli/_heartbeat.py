"""A heartbeat on the event loop: the longest turn of the loop, and the longest wait in one.

Theory of operation. A task asks to be woken every millisecond, and notes when it is woken. The time
between two ticks, a gap, has two parts. In one part the loop thread ran, or was ready to run while
other programs had the processors: tasks share that time, and more tasks make a turn longer. In the
other part it *waited*: for a disk, for the interpreter lock, or for the tick itself. Only the
second part says whether something blocked the loop. It includes the millisecond of the tick, and
about another one from the timer's rounding, so a loop with nothing to do waits 1 to 3 ms.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

TICK_SECONDS = 0.001


class Heartbeat:
    """Measures the gaps between ticks while an ``async with`` block runs.

    Attributes:
        worst_gap: longest time between two ticks, in seconds; it includes the tick's own length.
        worst_wait: longest time in a gap in which the loop thread neither ran nor was ready to run,
            in seconds; it includes the tick's own length if the loop had nothing else to do.
        ticks: how often the task was woken.
    """

    def __init__(self, tick: float = TICK_SECONDS) -> None:
        self.worst_gap = 0.0
        self.worst_wait = 0.0
        self.ticks = 0
        self._tick = tick
        self._last = 0.0
        self._last_busy = 0.0
        self._clock = _BusyClock()
        self._tasks: anyio.abc.TaskGroup = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        await self._tasks.start(self._beat)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # If work blocked the loop until now, no tick has noted that gap yet.
        self._note()
        self._tasks.cancel_scope.cancel()
        # The task group does not get the block's error, and so does not wrap it in a group.
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._clock.close()

    async def _beat(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self._last, self._last_busy = time.perf_counter(), self._clock.read()
        task_status.started()
        while True:
            await anyio.sleep(self._tick)
            self._note()
            self.ticks += 1

    def _note(self) -> None:
        now, busy = time.perf_counter(), self._clock.read()
        gap = now - self._last
        self.worst_gap = max(self.worst_gap, gap)
        self.worst_wait = max(self.worst_wait, gap - (busy - self._last_busy))
        self._last, self._last_busy = now, busy


class _BusyClock:
    """Counts the seconds in which the calling thread ran, or was ready to run.

    The time ready to run is known if the kernel keeps scheduler statistics, as most kernels do.
    """

    def __init__(self) -> None:
        self._statistics = -1
        with suppress(OSError):
            # The file is of the thread that opens it, also if another thread reads it.
            self._statistics = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> float:
        ran = time.thread_time()
        if self._statistics < 0:
            return ran
        # Nanoseconds on a processor (outdated), nanoseconds ready to run, and a count.
        _, ready, _ = os.pread(self._statistics, 80, 0).split()
        return ran + int(ready) / 1e9

    def close(self) -> None:
        if self._statistics >= 0:
            os.close(self._statistics)
            self._statistics = -1
