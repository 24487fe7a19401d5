"""A heartbeat on the event loop: the longest time in which the loop ran nothing else.

Theory of operation: a task asks to be woken every millisecond and notes when it really was. A
loop that is blocked, or whose thread cannot get the interpreter lock, wakes it late. The gap
contains the millisecond that was asked for (and the timer's rounding, about another one), so a
gap of 1 to 3 ms is an idle loop.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

TICK_SECONDS = 0.001


class Heartbeat:
    """Measure the worst gap between two ticks while the ``async with`` block runs.

    Attributes:
        worst_gap: longest time between two ticks, in seconds; includes the tick's own length.
        ticks: how often the task was woken.
    """

    def __init__(self, tick: float = TICK_SECONDS) -> None:
        self.worst_gap = 0.0
        self.ticks = 0
        self._tick = tick
        self._last = 0.0
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
        # Work that blocked the loop to its very end left no tick behind to notice.
        self._note()
        self._tasks.cancel_scope.cancel()
        # Not handed the block's error: it goes on as it is instead of inside an exception group.
        await self._tasks.__aexit__(None, None, None)

    async def _beat(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self._last = time.perf_counter()
        task_status.started()
        while True:
            await anyio.sleep(self._tick)
            self._note()
            self.ticks += 1

    def _note(self) -> None:
        now = time.perf_counter()
        self.worst_gap = max(self.worst_gap, now - self._last)
        self._last = now
