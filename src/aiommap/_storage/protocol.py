"""The protocol of a storage backend: where exact reads come from."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, runtime_checkable


@runtime_checkable
class StorageBackend(Protocol):
    """Immutable bytes that can be read at any offset; ``Snapshot`` is one as well.

    The bytes [0, ``size``) never change: two reads of one range return the same bytes. Opening is
    not part of the protocol, because each kind of backend has its own arguments; a backend is open
    when its user gets it. A backend needs no base class, and ``isinstance`` checks only the names
    of the members. ``aiommap.testing.StorageBackendSuite`` tests a backend against this contract.

    Concurrency: any number of tasks of one event loop may read at once, also overlapping ranges. A
        task may have to wait for another, for instance if the backend has few connections.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """How many bytes can be read.

        Constant: reading it never waits. A backend has it from the beginning, and still has it
        after ``aclose``. It may be 0.
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
            OutOfBoundsError: before any read, if [offset, offset + length) is not within [0, size),
                also for negative numbers and for those beyond 64 bits. Its attributes are the two
                numbers and the size. Also if the source turns out to be shorter than the size:
                ``limit`` is then where it ends. (A mapped backend raises ``MappingFaultError`` in
                that case.)
            TypeError: if a number is not an integer, for instance a float: nothing is rounded.
            OSError: for any other failure of the source. The backend stays usable, and the next
                read may succeed.
            anyio.ClosedResourceError: if the backend is closed, also for an empty range.
        Cancellation: allowed at any time; bytes read by then are dropped. A cancelled read harms no
            other read, leaves nothing locked or half sent, and the backend stays readable.
        Concurrency: see the class. A read that is under way when ``aclose`` is called returns the
            right bytes or raises ``anyio.ClosedResourceError``; it never waits for ever.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Release the resources of the backend; from then on ``read_exact`` raises.

        A second call does nothing.

        Raises:
            OSError: if the release fails; the backend is closed all the same.
        Cancellation: the backend is closed all the same. An implementation that has to await
            something in order to release it does so in a shielded scope.
        Concurrency: any task may call it, also while others read.
        """
