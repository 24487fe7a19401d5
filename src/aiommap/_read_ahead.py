"""Read-ahead: a window of pages being read in by another worker, ahead of whoever walks the file.

Where the kernel's own read-ahead is short, a walk alone leaves the device idle between requests;
two threads keep it busy. Where it is long they only get in each other's way (docs/decisions).
"""

from __future__ import annotations

import os
from functools import partial

from ._core import Core
from ._native import PIECE_BYTES

#: From here on the kernel's read-ahead alone keeps a device busy, and in larger folios than ours.
LONG_READ_AHEAD_KIB = 512
#: Where Linux tells it: for whole devices and network file systems, and for partitions.
_SYSFS = ("/sys/class/bdi/{}:{}/read_ahead_kb", "/sys/dev/block/{}:{}/../queue/read_ahead_kb")


def kernel_reads_far_ahead(device: int) -> bool:
    """Tell whether a walk through a file of this device needs no help. Worker threads only."""
    for place in _SYSFS:
        try:
            with open(place.format(os.major(device), os.minor(device)), "rb") as setting:
                return int(setting.read()) >= LONG_READ_AHEAD_KIB
        except (OSError, ValueError):
            continue
    return False


class ReadAhead:
    """Keeps reading in one window ahead of a position; at most one request is under way.

    Args:
        window: bytes to ask for at a time; asked for once less than half of it is left.
    """

    __slots__ = ("_asked", "_busy", "_core", "_end", "_window")

    def __init__(self, core: Core, offset: int, end: int, window: int) -> None:
        self._core = core
        self._end = end
        self._window = max(window, PIECE_BYTES)
        self._asked = offset
        self._busy = False

    def reach(self, position: int) -> None:
        """Say how far the walk has come; asks for the next window when it is time."""
        if self._busy or self._core.closing or self._asked - position >= self._window // 2:
            return
        start = max(self._asked, position)
        stop = min(start + self._window, self._end, self._core.mapping.size)
        if start < stop:
            self._asked = stop
            self._busy = True
            core = self._core
            core.begin_activity()
            run = partial(self._advise, start, stop)
            core.workers.start(core.workers.reads, run, self._advised)

    def _advised(self, _result: None, _error: BaseException | None) -> None:
        self._busy = False
        self._core.end_activity()

    def _advise(self, start: int, stop: int) -> None:
        for at in range(start, stop, PIECE_BYTES):
            if self._core.closing:
                return
            try:
                self._core.mapping.read_ahead(at, min(PIECE_BYTES, stop - at))
            except (OSError, ValueError):
                return  # only a hint: the walk meets the same trouble and reports it
