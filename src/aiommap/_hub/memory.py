"""Anonymous memory with the verbs of a file."""

from __future__ import annotations

from functools import partial

from .._core.opening import warn_if_unguarded
from .._core.options import OpenOptions
from .._file.mapped_file import MappedFile
from .hub import Hub
from .opening import Opening


def open_memory(
    size: int, *, capacity: int | None = None, seal: bool = False
) -> Opening[MappedFile]:
    """Make anonymous memory with the verbs of a file: ``async with aiommap.open_memory(n) as f``.

    The memory is in mode "w+". It begins as zeros, and each page takes memory when it is first
    stored to. To share it, pass ``f.fileno()`` to another process, which opens it by
    ``aiommap.open(fd, "r+")``. It has no path, so it cannot be watched, reopened or pickled.

    Args:
        size: bytes.
        capacity: bytes of address space to reserve, as for ``open``.
        seal: whether to fix the size for good: then no process that has the descriptor can make the
            memory shorter or longer, so no load can fault. The bytes stay writable. Without it, add
            seals yourself, with ``fcntl.fcntl(f.fileno(), fcntl.F_ADD_SEALS, ...)``.
    Returns:
        As ``open``.
    Raises:
        ValueError, TypeError: if an option makes no sense; for ``capacity`` together with ``seal``.
        UnsupportedError: if the system has no memfd_create(2).
        OSError: ENOMEM, EFBIG, EMFILE.
    Cancellation: as ``open``.
    Durability: none. The policy is ``FlushPolicy.never()``, ``flush`` does nothing, no receipt is
        ``durable``, and ``wait_durable`` raises ``UnsupportedError``.
    Source: memfd_create(2); F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL of fcntl(2).
    """
    options = OpenOptions.check_memory(size, capacity, seal=seal)
    warn_if_unguarded()
    hub = Hub()
    return Opening(partial(hub._open, options))  # noqa: SLF001  a kind of its files
