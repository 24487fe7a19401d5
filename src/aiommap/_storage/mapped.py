"""``MappedBackend``: a storage backend that reads a mapped file."""

from __future__ import annotations

import os
from typing import SupportsIndex

from anyio.abc import AsyncResource

from .._arguments import check_range
from .._file.mapped_file import MappedFile
from .._hub.hub import Hub
from .._hub.opening import Opening
from .._snapshot.snapshot import Snapshot


class MappedBackend(AsyncResource):
    """A backend over a mapped file: it reads data that is in memory without a hop to a worker.

    Args:
        source: the file or snapshot to read from. The backend has the size that it has now, and
            closes it in the end.
    """

    __slots__ = ("_size", "_source")

    def __init__(self, source: Snapshot | MappedFile) -> None:
        if not isinstance(source, Snapshot | MappedFile):
            raise TypeError(
                f"source is {source!r}: give what is open already, or use MappedBackend.open(path)"
            )
        self._source = source
        self._size = source.size

    @staticmethod
    def open(
        path: str | os.PathLike[str], *, hub: Hub | None = None, prewarm: bool = False
    ) -> Opening[MappedBackend]:
        """Open a file as a snapshot and read from that; as ``Snapshot.open``."""
        return _reopen(Snapshot.open(path, hub=hub, prewarm=prewarm))

    @property
    def size(self) -> int:
        """Bytes of the file when the backend was made."""
        return self._size

    async def read_exact(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """Read bytes: all of them, or an error; as ``MappedFile.read``."""
        start, count = check_range(offset, length, self._size)
        if isinstance(self._source, MappedFile):
            return await self._source.read(start, count)
        return await self._source.read_exact(start, count)

    async def aclose(self) -> None:
        """Close the file or snapshot; as its own ``aclose``."""
        await self._source.aclose()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._source,)

    def __repr__(self) -> str:
        return f"<MappedBackend of {self._source!r}>"


def _reopen(source: Opening[Snapshot] | Opening[MappedFile]) -> Opening[MappedBackend]:
    """Make the opening of a backend from the opening of its source; unpickling calls it, too."""

    async def begin() -> MappedBackend:
        return MappedBackend(await source)

    return Opening(begin)
