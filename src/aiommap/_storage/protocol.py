"""The protocol of a storage backend: where exact reads come from."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, runtime_checkable


@runtime_checkable
class StorageBackend(Protocol):
    """Immutable bytes that can be read at any offset; ``Snapshot`` is one as well.

    The bytes [0, ``size``) never change: two reads of one range return the same bytes. Opening is
    not part of the protocol, as its arguments differ; a backend is open when its user gets it. The
    protocol needs the methods alone: a backend derives from nothing, and ``isinstance`` checks only
    the names. ``aiommap.testing.StorageBackendSuite`` tests a backend against this contract.

    Concurrency: any number of tasks of one event loop read at once, also overlapping ranges. A task
        may have to wait for another, as when the backend has few connections.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """How many bytes can be read.

        Constant; it needs no call that may wait. The backend knows it before its user gets
        the backend, and still knows it after ``aclose``. 0 is a size like any other.
        """

    @abstractmethod
    async def read_exact(self, offset: int, length: int, /) -> bytes:
        """Read bytes: all of them, or an error.

        The backend continues a short read of its source until it has all bytes. If it cannot, it
        raises; it never returns fewer bytes, nor zeros in place of the rest.

        Args:
            offset: first byte, from 0; 0 <= offset <= size. Passed by position.
            length: number of bytes; offset + length <= size. 0 is allowed, also at the very end,
                and returns ``b""``.
        Returns:
            Exactly ``length`` bytes, as ``bytes`` and not another buffer.
        Raises:
            OutOfBoundsError: before anything is read, if [offset, offset + length) is not within
                [0, size), also for negative numbers and for those beyond 64 bits; the two numbers
                and the size are its attributes. Also for bytes within the size that the source does
                not have: ``limit`` is then where it ends. A mapped backend raises
                ``MappingFaultError`` there.
            TypeError: if a number is no integer, a float for instance: nothing is rounded.
            OSError: for any other failure of the source. The backend stays usable, and the next
                read may succeed.
            anyio.ClosedResourceError: if the backend is closed, also for an empty range.
        Cancellation: at any time; drops what was read by then. It harms no other read, leaves
            nothing locked or half sent, and the backend can be read again at once.
        Concurrency: see the class. A read that is under way when ``aclose`` is called returns the
            right bytes or raises ``anyio.ClosedResourceError``, and never waits for ever.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Release what the backend holds; from then on ``read_exact`` raises.

        A second call does nothing.

        Raises:
            OSError: if the release fails; the backend is closed all the same.
        Cancellation: it is closed all the same. Release in a shielded scope what has to be awaited.
        Concurrency: by any task, also while others read.
        """
