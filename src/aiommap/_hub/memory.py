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

    It is zeros in the beginning, in mode "w+", and takes memory page by page as it is stored to. To
    share it, pass ``f.fileno()`` to another process, which opens it by ``aiommap.open(fd, "r+")``.
    It has no path, so it cannot be watched, reopened or pickled.

    Args:
        size: bytes.
        capacity: bytes of address space to reserve, as for ``open``.
        seal: fix the size for good: nobody who has the descriptor can make it shorter or longer,
            and so nobody's loads meet an end. The bytes can be written all the same. Without it,
            add seals yourself, with ``fcntl.fcntl(f.fileno(), fcntl.F_ADD_SEALS, ...)``.
    Returns:
        As ``open``.
    Raises:
        ValueError, TypeError: for options that cannot be meant; capacity with seal.
        UnsupportedError: if the system has no memfd_create(2).
        OSError: ENOMEM, EFBIG, EMFILE.
    Cancellation: as ``open``.
    Durability: none, ever. The policy is ``FlushPolicy.never()``, ``flush`` has nothing to do, no
        receipt is ``durable``, and ``wait_durable`` raises ``UnsupportedError``.
    Source: memfd_create(2); F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL of fcntl(2).
    """
    options = OpenOptions.check_memory(size, capacity, seal=seal)
    warn_if_unguarded()
    hub = Hub()
    return Opening(partial(hub._open, options))  # noqa: SLF001  a kind of its files
