"""Files under a lease: opening one waits until the holder gives it back, as open(2) does.

Samba's oplocks and the delegations of NFS servers are leases (fcntl(2), F_SETLEASE). An open(2)
with O_NONBLOCK makes the kernel ask the holder, and fails at once. So we try again. The wait
between two attempts holds neither a thread nor the queue in which other files are opened.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

#: The first wait and the longest one between two attempts.
FIRST_SECONDS = 0.002
MAX_PAUSE_SECONDS = 0.05

#: How long the kernel by default lets a holder keep a lease after it asked for it.
_BREAK_SECONDS = 45


class LeasedError(BlockingIOError):
    """Another process has a lease on the file; the kernel asked it to give the lease back.

    Attributes:
        patience: how long the holder may keep the lease, in seconds.
    """

    def __init__(self, path: str) -> None:
        self.patience = _break_seconds()
        reason = (
            f"{os.strerror(errno.EAGAIN)}: another process has a lease on it (fcntl F_SETLEASE, as "
            "Samba and NFS servers take them) and does not give it back"
        )
        super().__init__(errno.EAGAIN, reason, path)


def _break_seconds() -> float:
    """Say how long a holder may keep a lease, in seconds; worker threads only."""
    try:
        with open("/proc/sys/fs/lease-break-time", encoding="utf-8") as file:
            seconds = int(file.read())
    except (OSError, ValueError):
        return _BREAK_SECONDS
    return seconds or float("inf")


async def past_leases(attempt: Callable[[], Awaitable[T]]) -> T:
    """Open a file that may be under a lease, by as many attempts as that takes.

    Raises:
        LeasedError: if the holder keeps the lease for twice as long as the kernel lets it.
    Cancellation: at once between two attempts; during one, as that attempt.
    """
    began, pause = time.monotonic(), FIRST_SECONDS
    while True:
        try:
            return await attempt()
        except LeasedError as error:
            if time.monotonic() - began > 2 * error.patience:
                raise
        await anyio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)
