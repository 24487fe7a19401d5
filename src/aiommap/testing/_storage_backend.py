"""``StorageBackendSuite``: the contract of ``StorageBackend`` as a suite of tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import ClassVar

import anyio
import anyio.lowlevel
import pytest

from aiommap import PAGE_SIZE, OutOfBoundsError, StorageBackend


def _pattern(length: int) -> bytes:
    """Make bytes in which two ranges that a faulty backend may confuse are never equal."""
    words = (i.to_bytes(4, "little") for i in range(length // 4 + 1))
    return b"".join(words)[:length]


class StorageBackendSuite:
    """Tests what every ``StorageBackend`` has to do; derive a class from it in your tests.

    The name of the derived class begins with ``Test``, for pytest. It says how to make a backend::

        class TestMyBackend(StorageBackendSuite):
            async def make_backend(self, content, folder):
                (folder / "stored").write_bytes(content)
                return await MyBackend.open(folder / "stored")

    The tests are marked ``anyio``: anyio's pytest plugin runs them on the event loops that the
    ``anyio_backend`` fixture names.

    Attributes:
        content: the bytes that most tests have ``make_backend`` serve. If a backend can serve only
            certain bytes, set others, at least some pages of them.
        readers: how many tasks read at the same time in tests of concurrency.
    """

    pytestmark: ClassVar[pytest.MarkDecorator] = pytest.mark.anyio

    content: ClassVar[bytes] = _pattern(3 * PAGE_SIZE + 5)
    readers: ClassVar[int] = 64

    async def make_backend(self, content: bytes, folder: Path) -> StorageBackend:
        """Return an open backend that serves the given bytes; the suite closes it.

        Args:
            content: all the bytes that it serves, from offset 0.
            folder: an empty folder for files that it needs.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define make_backend")

    @asynccontextmanager
    async def _open(self, folder: Path) -> AsyncIterator[StorageBackend]:
        backend = await self.make_backend(self.content, folder)
        try:
            yield backend
        finally:
            with anyio.CancelScope(shield=True):
                await backend.aclose()

    def _edges(self) -> tuple[int, ...]:
        """Offsets and lengths at which faults are likely."""
        end = len(self.content)
        around_page = (PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1)
        return (0, 1, *around_page, end - 1, end, end + 1, 2**63 - 1, 2**64, -1, -(2**63))

    def _ranges(self, *, inside: bool) -> Iterator[tuple[int, int]]:
        end = len(self.content)
        for offset in self._edges():
            for length in self._edges():
                if (min(offset, length) >= 0 and offset + length <= end) == inside:
                    yield offset, length

    def _spans(self) -> Iterator[tuple[int, int]]:
        """One range for each reader: of lengths up to two pages, spread over the content."""
        end = len(self.content)
        for i in range(self.readers):
            offset = i * 977 % end
            yield offset, min(1 + i * 131 % (2 * PAGE_SIZE), end - offset)

    async def test_it_is_a_storage_backend(self, tmp_path: Path) -> None:
        """It has the members of the protocol."""
        async with self._open(tmp_path) as backend:
            assert isinstance(backend, StorageBackend)

    async def test_its_size_is_the_length_of_its_content(self, tmp_path: Path) -> None:
        """The size is an attribute, and constant."""
        async with self._open(tmp_path) as backend:
            assert backend.size == len(self.content)
            await backend.read_exact(0, 1)
            assert backend.size == len(self.content)

    async def test_ranges_within_are_read_exactly(self, tmp_path: Path) -> None:
        """A read returns exactly the range, as ``bytes``; an empty range, too."""
        async with self._open(tmp_path) as backend:
            for offset, length in self._ranges(inside=True):
                data = await backend.read_exact(offset, length)
                assert type(data) is bytes
                assert len(data) == length, (offset, length)
                assert data == self.content[offset : offset + length], (offset, length)

    async def test_ranges_beyond_are_refused_with_their_numbers(self, tmp_path: Path) -> None:
        """A range that begins before 0 or ends behind the size raises an error with its numbers."""
        async with self._open(tmp_path) as backend:
            for offset, length in self._ranges(inside=False):
                with pytest.raises(OutOfBoundsError) as caught:
                    await backend.read_exact(offset, length)
                error = caught.value
                found = (error.offset, error.length, error.limit)
                assert found == (offset, length, len(self.content))
            assert await backend.read_exact(0, 1) == self.content[:1]

    async def test_numbers_that_are_not_integers_are_refused(self, tmp_path: Path) -> None:
        """A float is a mistake of the caller, and is not rounded in silence."""
        async with self._open(tmp_path) as backend:
            for offset, length in ((0.0, 1), (0, 1.0)):
                with pytest.raises(TypeError):
                    await backend.read_exact(offset, length)  # type: ignore[arg-type]

    async def test_no_content_has_no_bytes(self, tmp_path: Path) -> None:
        """An empty backend returns the empty range, and refuses any other."""
        backend = await self.make_backend(b"", tmp_path)
        assert backend.size == 0
        assert await backend.read_exact(0, 0) == b""
        with pytest.raises(OutOfBoundsError):
            await backend.read_exact(0, 1)
        await backend.aclose()

    async def test_concurrent_reads_do_not_mix(self, tmp_path: Path) -> None:
        """Each of many tasks gets the bytes of its own range."""
        wrong: list[tuple[int, int]] = []

        async def read(backend: StorageBackend, offset: int, length: int) -> None:
            for _ in range(5):
                data = await backend.read_exact(offset, length)
                if data != self.content[offset : offset + length]:
                    wrong.append((offset, length))

        async with self._open(tmp_path) as backend, anyio.create_task_group() as group:
            for offset, length in self._spans():
                group.start_soon(read, backend, offset, length)
        assert not wrong, f"reads of (offset, length) {wrong} got bytes of others"

    async def test_a_cancelled_read_harms_nobody(self, tmp_path: Path) -> None:
        """Reads that are cancelled, early or late, neither break the backend nor other reads."""

        async def read(backend: StorageBackend, offset: int, length: int) -> None:
            for _ in range(5):
                await backend.read_exact(offset, length)

        async with self._open(tmp_path) as backend:
            for turns in range(4):
                async with anyio.create_task_group() as group:
                    for offset, length in self._spans():
                        group.start_soon(read, backend, offset, length)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                assert await backend.read_exact(0, len(self.content)) == self.content

    async def test_a_closed_backend_refuses_to_read(self, tmp_path: Path) -> None:
        """A second ``aclose`` does nothing, the size stays, and a read raises."""
        async with self._open(tmp_path) as backend:
            await backend.read_exact(0, 1)
            await backend.aclose()
            await backend.aclose()
            for offset, length in ((0, 1), (0, len(self.content)), (0, 0)):
                with pytest.raises(anyio.ClosedResourceError):
                    await backend.read_exact(offset, length)
            assert backend.size == len(self.content)

    @pytest.mark.parametrize("turns", range(5))
    async def test_closing_under_reads_answers_or_refuses_each(
        self, tmp_path: Path, turns: int
    ) -> None:
        """A read under way returns the right bytes or raises; it never waits for ever."""
        wrong: list[tuple[int, int]] = []

        async def read(backend: StorageBackend, offset: int, length: int) -> None:
            with suppress(anyio.ClosedResourceError):
                for _ in range(20):
                    data = await backend.read_exact(offset, length)
                    if data != self.content[offset : offset + length]:
                        wrong.append((offset, length))

        async with self._open(tmp_path) as backend:
            with anyio.fail_after(30):
                async with anyio.create_task_group() as group:
                    for offset, length in self._spans():
                        group.start_soon(read, backend, offset, length)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    await backend.aclose()
        assert not wrong, f"reads of (offset, length) {wrong} got other bytes"

    async def test_a_cancelled_close_closes(self, tmp_path: Path) -> None:
        """A cancelled ``aclose`` closes the backend all the same."""
        async with self._open(tmp_path) as backend:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await backend.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await backend.read_exact(0, 1)
