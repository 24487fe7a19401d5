"""The protocol of a storage backend: where exact reads come from."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, runtime_checkable


@runtime_checkable
class StorageBackend(Protocol):
    """Immutable bytes that can be read at any offset; ``Snapshot`` is one as well.

    The bytes [0, ``size``) never change: two reads of one range give the same, whoever reads and
    whenever. Opening is not part of the protocol, as what it takes differs; a backend is open when
    it is handed to somebody. The methods are all that is asked for: a backend need derive from
    nothing, and ``isinstance`` looks at the names alone. ``aiommap.testing.StorageBackendSuite``
    holds one to what is said here.

    Concurrency: any number of tasks of one event loop read at once, also overlapping ranges. None
        has to wait for another, but may, as when the backend has a few connections.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """How many bytes there are, from the first to the last that can be asked for.

        Constant, and answered at once: not a coroutine, no call that may wait. It is known before
        the backend is handed out, and still there after ``aclose``. 0 is a size like any other.
        """

    @abstractmethod
    async def read_exact(self, offset: int, length: int, /) -> bytes:
        """Read bytes: all of them, or an error.

        A read that the source answers short is continued until it is whole. If it cannot be, that
        is an error, never fewer bytes and never zeros in place of the rest.

        Args:
            offset: first byte, from 0; 0 <= offset <= size. Passed by position.
            length: number of bytes; offset + length <= size. 0 is allowed, also at the very end,
                and answers ``b""``.
        Returns:
            Exactly ``length`` bytes, as ``bytes`` and not another buffer.
        Raises:
            OutOfBoundsError: if [offset, offset + length) is not within [0, size), negative
                numbers and such beyond 64 bits included, with the two and the size as attributes;
                before anything is read. Also for bytes within that the source turned out not to
                have, ``limit`` being where it ends; a mapped one is a ``MappingFaultError`` there.
            TypeError: if a number is none, or a float: nothing is rounded.
            OSError: what else keeps the source from giving the bytes. The backend stays usable, and
                the next read may succeed.
            anyio.ClosedResourceError: if the backend is closed, also for an empty range.
        Cancellation: at any time; what was read by then is dropped. It harms no other read, leaves
            nothing locked or half sent, and the backend can be read again at once.
        Concurrency: see the class. A read that is under way when ``aclose`` is called is answered
            with the right bytes or with ``anyio.ClosedResourceError``, and never left waiting.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Give up what the backend holds; from then on ``read_exact`` refuses.

        A second call does nothing.

        Raises:
            OSError: if giving up fails; the backend is closed all the same.
        Cancellation: it is closed all the same. Release in a shielded scope what has to be awaited.
        Concurrency: by any task, also while others read.
        """
