"""Find the worst stall of the loop, and where the loop thread was meanwhile."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import Self

import anyio

BEAT_SECONDS = 0.001
#: How late the heartbeat must be before we look at the loop thread's stack.
LOOK_SECONDS = 0.02


class StallWatch:
    """A heartbeat on the loop, and a thread that looks at the loop's stack when a beat is late.

    The machine stalls a loop as well, when other processes have the cores. The stack, and a process
    that does nothing but beat, tell such a stall from one of ours.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self.where = ""
        # Written by the loop thread, read by ours.
        self._last = time.perf_counter()
        # Written by our thread: the time of the last beat before the gap, and the stack then.
        self._seen: tuple[float, str] = (0.0, "")
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="soak-stalls")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    async def beat(self) -> None:
        """Beat until cancelled."""
        self._last = time.perf_counter()
        while True:
            await anyio.sleep(BEAT_SECONDS)
            now = time.perf_counter()
            late = now - self._last - BEAT_SECONDS
            if late > self.worst:
                self.worst = late
                missed, where = self._seen
                self.where = where if missed == self._last else ""
            self._last = now

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS / 2):
            last = self._last
            if time.perf_counter() - last < LOOK_SECONDS or last == self._seen[0]:
                continue
            frame = sys._current_frames().get(self._loop_thread)
            stack = traceback.extract_stack(frame)[-4:]
            places = [f"{entry.name} ({entry.filename}:{entry.lineno})" for entry in stack]
            self._seen = last, " > ".join(places)
