"""Flush policies: when written bytes are made durable without anybody asking.

Pure: a policy is a value; what is due is decided from counts that the caller passes in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """When writes are flushed; made by its class methods, never changed afterwards.

    Every policy leaves explicit ``flush``, ``flush_range`` and ``wait_durable`` as they are: they
    always make durable what they name. A policy only adds flushes nobody asked for.

    Attributes:
        name: "never", "manual" or "always".
        flush_at_close: whether ``aclose`` flushes what is still dirty.
        flush_each_write: whether ``write`` returns only once its bytes are durable.
    """

    name: str
    flush_at_close: bool
    flush_each_write: bool

    @classmethod
    def never(cls) -> FlushPolicy:
        """Leave write-back to the operating system, also at close."""
        return cls("never", flush_at_close=False, flush_each_write=False)

    @classmethod
    def manual(cls) -> FlushPolicy:
        """Flush when asked, and once more at close."""
        return cls("manual", flush_at_close=True, flush_each_write=False)

    @classmethod
    def always(cls) -> FlushPolicy:
        """Make every write durable before it returns; concurrent writes share one flush."""
        return cls("always", flush_at_close=True, flush_each_write=True)
