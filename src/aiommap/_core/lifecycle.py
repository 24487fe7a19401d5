"""The life of one open file: open, retired, closing, closed; and the waits that each step ends.

Invariants.
  1  No verb passes ``FileCore.check_usable`` once closing has begun. A verb that passed before is
      counted here, or waits in the commit queue, until it is done. Closing waits for both.
  2  No task waits for a word or a lock of a file that is retired or closing. Retiring and closing
      end the waits registered here, and a task that comes later finds the state and raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

import anyio

from .._runtime.event_loop import Event


class State(IntEnum):
    """The state of a file in its life; it only goes forward."""

    OPEN = 0
    #: The path was reopened. Verbs that had begun finish on this file; no other verb begins.
    RETIRED = 1
    CLOSING = 2
    CLOSED = 3


class Lifecycle:
    """The state of one open file, its verbs under way and the waits to end; on the loop thread.

    Any thread may read the state.
    """

    __slots__ = ("_active", "_event", "_idle", "_path", "_waits", "retired", "state")

    def __init__(self, path: str, event: Callable[[], Event]) -> None:
        self._path = path
        self._event = event
        self.state: State = State.OPEN
        #: Whether a reopen moved the mapped file to another mapping; stays True while this closes.
        self.retired: bool = False
        self._active = 0
        self._idle: Event | None = None
        #: A dictionary, as an empty set takes 216 bytes.
        self._waits: dict[Callable[[], None], None] = {}

    @property
    def closing(self) -> bool:
        """Whether closing has begun or is over, so that no verb passes."""
        return self.state >= State.CLOSING

    def retire(self) -> None:
        """Note that a reopen moved the mapped file to another mapping."""
        self.state = State.RETIRED
        self.retired = True
        self._end_waits()

    def begin_closing(self) -> None:
        """Let no verb pass from now on."""
        self.state = State.CLOSING
        self._end_waits()

    def end_closing(self) -> None:
        """Note that the mapping was given up."""
        self.state = State.CLOSED

    def add_wait(self, end: Callable[[], None]) -> None:
        """Register the function that ends a wait for other tasks or processes."""
        self._waits[end] = None

    def remove_wait(self, end: Callable[[], None]) -> None:
        """Forget a wait that is over."""
        self._waits.pop(end, None)

    def _end_waits(self) -> None:
        for end in tuple(self._waits):
            end()

    def ended(self) -> anyio.ClosedResourceError:
        """Make the error for a wait that closing or reopening ends."""
        if self.retired:
            return anyio.ClosedResourceError(
                f"{self._path} was reopened, and this belongs to the file that it was before: make "
                "it again, a view or a word as well as an AsyncLock"
            )
        return anyio.ClosedResourceError(f"{self._path} is closed: open it again to use it")

    @contextmanager
    def activity(self) -> Iterator[None]:
        """Keep ``wait_idle`` waiting for as long as the block runs."""
        self.begin_activity()
        try:
            yield
        finally:
            self.end_activity()

    def begin_activity(self) -> None:
        """Keep ``wait_idle`` waiting until ``end_activity``."""
        self._active += 1

    def end_activity(self) -> None:
        """End what ``begin_activity`` began."""
        self._active -= 1
        if not self._active and self._idle is not None:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no verb is under way."""
        while self._active:
            self._idle = self._event()
            await self._idle.wait()
