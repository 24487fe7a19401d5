"""Advice: how a range is going to be used, in the kernel's own terms."""

from __future__ import annotations

import enum
import os

from ._native import (
    MADV_COLD,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
)


class Advice(enum.Enum):
    """How a range is going to be used; see madvise(2) and posix_fadvise(2).

    Each member applies to the mapping, and to reads through the descriptor if posix_fadvise(2) has
    the same advice.
    """

    #: The default: read-ahead around each miss.
    NORMAL = "normal"
    #: Single pages in no order: no read-ahead.
    RANDOM = "random"
    #: Front to back: twice the read-ahead.
    SEQUENTIAL = "sequential"
    #: Soon: start reading in now. ``prewarm`` does the same and waits for it.
    WILL_NEED = "will_need"
    #: Not soon: drop clean pages from memory. Dirty pages stay. Refused in mode "c", where it would
    #: throw stores away.
    DONT_NEED = "dont_need"
    #: Reclaim these pages before others (Linux 5.4).
    COLD = "cold"
    #: Reclaim these pages now (Linux 5.4).
    PAGE_OUT = "page_out"
    #: Back the range with huge pages where the file system can (Linux).
    HUGE_PAGE = "huge_page"
    #: Do not back the range with huge pages (Linux).
    NO_HUGE_PAGE = "no_huge_page"

    @property
    def madvise(self) -> int | None:
        """The advice as madvise takes it; None if the platform lacks it."""
        return _MADVISE[self]

    @property
    def fadvise(self) -> int | None:
        """The advice as posix_fadvise takes it; None if that has no such advice."""
        return _FADVISE.get(self)


_NUMBERS = {
    Advice.NORMAL: MADV_NORMAL,
    Advice.RANDOM: MADV_RANDOM,
    Advice.SEQUENTIAL: MADV_SEQUENTIAL,
    Advice.WILL_NEED: MADV_WILLNEED,
    Advice.DONT_NEED: MADV_DONTNEED,
    Advice.COLD: MADV_COLD,
    Advice.PAGE_OUT: MADV_PAGEOUT,
    Advice.HUGE_PAGE: MADV_HUGEPAGE,
    Advice.NO_HUGE_PAGE: MADV_NOHUGEPAGE,
}
_MADVISE = {advice: None if number < 0 else number for advice, number in _NUMBERS.items()}

_FADVISE = {
    advice: getattr(os, name)
    for advice, name in (
        (Advice.NORMAL, "POSIX_FADV_NORMAL"),
        (Advice.RANDOM, "POSIX_FADV_RANDOM"),
        (Advice.SEQUENTIAL, "POSIX_FADV_SEQUENTIAL"),
        (Advice.WILL_NEED, "POSIX_FADV_WILLNEED"),
        (Advice.DONT_NEED, "POSIX_FADV_DONTNEED"),
    )
    if hasattr(os, name)
}
