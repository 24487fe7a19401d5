"""Tracing: an observer learns of operations that may leave the loop thread.

Theory of operation. The slow ways of verbs run inside ``traced``. Without an observer it reads one
variable, which is little beside a hop of some 40 microseconds. With an observer it calls that once
for each operation, after its end, in the task that asked for it and so in the context of that task.

Invariants.
  1  Inline verbs do not come here: an operation is traced only if it may wait.
  2  An error of an observer is logged, and changes nothing about the operation.
  3  There is one observer at a time. An operation calls the one that was set when it began.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .._logs import CALLBACKS

#: Called with an operation that has ended; on the loop thread, so it must not wait.
Observer = Callable[["Operation"], object]

_observer: Observer | None = None


def set_observer(observer: Observer | None) -> None:
    """Call a function for every operation that begins from now on; None ends the calls."""
    global _observer
    _observer = observer


def is_traced() -> bool:
    """Tell whether there is an observer; for short ways that skip ``traced`` without one."""
    return _observer is not None


class Operation:
    """One operation, from its beginning to its end.

    Attributes:
        name: "open", "read", "write", "append", "flush" or "prewarm".
        path: the absolute path of the file.
        offset: the first byte that was asked for.
        length: the number of bytes from there to the end of the last one that was asked for.
        hops: how many hops it took; a hop shared with other operations counts.
        started: when it began, in nanoseconds since 1970.
        seconds: how long it took, in seconds.
        error: the exception that it raised, or its cancellation; None if it succeeded.
    """

    __slots__ = (
        "_begun",
        "_tell",
        "error",
        "hops",
        "length",
        "name",
        "offset",
        "path",
        "seconds",
        "started",
    )

    def __init__(self, tell: Observer, name: str, path: str, offset: int, length: int) -> None:
        self._tell: Observer = tell
        self.name: str = name
        self.path: str = path
        self.offset: int = offset
        self.length: int = length
        self.hops: int = 0
        self.started: int = 0
        self.seconds: float = 0.0
        self.error: BaseException | None = None

    def hop(self) -> None:
        """Count a hop."""
        self.hops += 1

    def hop_if(self, needed: Callable[[], bool]) -> None:
        """Count a hop if one is needed; ``needed`` is called only with an observer."""
        self.hops += needed()

    def covers(self, length: int) -> None:
        """Set the length, if it was unknown when the operation began."""
        self.length = length

    def begins(self, offset: int) -> None:
        """Set the offset, if it was unknown when the operation began."""
        self.offset = offset

    def __enter__(self) -> Self:
        self.started, self._begun = time.time_ns(), time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._begun
        self.error = error
        try:
            self._tell(self)
        except Exception:
            CALLBACKS.exception("the observer failed when it was told of a %s", self.name)
        finally:
            self.error = None  # else its traceback and this object would keep each other alive


class _Untraced:
    """Stands for an operation while there is no observer."""

    __slots__ = ()

    def hop(self) -> None:
        """Count nothing."""

    def hop_if(self, needed: Callable[[], bool]) -> None:
        """Call nothing."""

    def covers(self, length: int) -> None:
        """Keep nothing."""

    def begins(self, offset: int) -> None:
        """Keep nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


_UNTRACED = _Untraced()


def traced(name: str, path: str, offset: int, length: int) -> Operation | _Untraced:
    """Make the block for the slow way of a verb."""
    tell = _observer
    return _UNTRACED if tell is None else Operation(tell, name, path, offset, length)
