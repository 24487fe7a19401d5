"""Decide from counts when a flush policy asks for a flush; pure.

A policy made of limits that exist is a constructor in ``_flush_policy.py`` and nothing here. For a
new limit, add a field and a constructor there. Here, say in ``due`` when it
is due, and in ``limits`` too if an inline store can make it due. If it counts something new, pass
that count where ``BackgroundFlush._due`` and ``_log/appender`` call ``due``; stores are counted in
``_csrc/py/accounting.c``. A new kind of deadline also needs a case in
``BackgroundFlush._set_inline_limits``.
"""

from __future__ import annotations

from .._flush_policy import FlushPolicy


class FlushTrigger:
    """Decides whether a flush of one file is due, from counts of bytes and of writes, and times.

    Counts are totals since the file was opened, as the native module keeps them. The trigger
    remembers their values at the beginning of the last flush of everything.
    """

    __slots__ = ("_bytes", "_writes", "policy")

    def __init__(self, policy: FlushPolicy) -> None:
        self.policy: FlushPolicy = policy
        self._bytes = 0
        self._writes = 0

    def replace_policy(self, policy: FlushPolicy) -> None:
        """Decide by another policy."""
        self.policy = policy

    def began(self, written_bytes: int, writes: int) -> None:
        """Note that a flush of everything began at these counts."""
        self._bytes = written_bytes
        self._writes = writes

    def due(self, written_bytes: int, writes: int, dirty_since: float | None, now: float) -> bool:
        """Tell whether a flush is due; ``dirty_since`` is when the oldest dirty byte was stored."""
        if dirty_since is None:
            return False
        deadline = self.deadline(dirty_since)
        bytes_due, writes_due = self.limits()
        return (
            (bytes_due is not None and written_bytes >= bytes_due)
            or (writes_due is not None and writes >= writes_due)
            or (deadline is not None and now >= deadline)
        )

    def deadline(self, dirty_since: float | None) -> float | None:
        """Say when a flush will be due if nothing more is written."""
        if dirty_since is None or self.policy.due_seconds is None:
            return None
        return dirty_since + self.policy.due_seconds

    def limits(self) -> tuple[int | None, int | None]:
        """Say at which totals of bytes and of writes a flush will be due."""
        policy = self.policy
        return (
            None if policy.due_bytes is None else self._bytes + policy.due_bytes,
            None if policy.due_writes is None else self._writes + policy.due_writes,
        )
