"""Files and hubs opened in fixtures: set up in one task, torn down in another (workers.3).

A close that needed the task or a cancel scope of the open would fail or hang here.
"""

from __future__ import annotations

import asyncio

import anyio
import pytest
import pytest_asyncio

import aiommap
from aiommap import PAGE_SIZE as PAGE


@pytest.fixture
def closed_files():
    """Add files here with a receipt: as the test ends, all must be closed and durable."""
    entrusted = []
    yield entrusted
    assert entrusted, "the fixture under test handed nothing over"
    for file, receipt in entrusted:
        assert file.closed
        assert receipt.durable


async def write_and_check(f, path):
    """Write and read inline and in workers; return the receipt of the last write."""
    await f.resize(64 * PAGE)
    await f.write(0, b"w" * 64 * PAGE)
    assert await f.read(0, 64 * PAGE) == path.read_bytes()
    return await f.write(0, b"last")


@pytest_asyncio.fixture
async def asyncio_file(path, closed_files):
    async with aiommap.open(path, "r+") as f:
        yield f


@pytest_asyncio.fixture
async def asyncio_unmanaged_file(path, closed_files):
    f = await aiommap.open(path, "r+")
    yield f
    await f.aclose()


@pytest_asyncio.fixture
async def asyncio_hub(closed_files):
    async with aiommap.Hub() as hub:
        yield hub


@pytest.mark.asyncio
async def test_file_of_asyncio_fixture(asyncio_file, path, closed_files):
    closed_files.append((asyncio_file, await write_and_check(asyncio_file, path)))


@pytest.mark.asyncio
async def test_file_of_asyncio_fixture_that_closes(asyncio_unmanaged_file, path, closed_files):
    f = asyncio_unmanaged_file
    closed_files.append((f, await write_and_check(f, path)))


@pytest.mark.asyncio
async def test_hub_of_asyncio_fixture(asyncio_hub, path, closed_files):
    """The test opens files and leaves it to the fixture of the hub to close them."""
    for _ in range(3):
        f = await asyncio_hub.open(path, "r+")
        closed_files.append((f, await write_and_check(f, path)))


@pytest.mark.asyncio
async def test_file_of_asyncio_fixture_when_cancelled(asyncio_file, path, closed_files):
    """Nothing of the cancellations may reach the task that closes the file."""
    receipt = await write_and_check(asyncio_file, path)
    tasks = [asyncio.create_task(asyncio_file.read(0, 64 * PAGE)) for _ in range(10)]
    tasks += [asyncio.create_task(asyncio_file.flush()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    closed_files.append((asyncio_file, receipt))


@pytest.fixture
async def anyio_file(path, closed_files, anyio_backend):
    async with aiommap.open(path, "r+") as f:
        yield f


@pytest.fixture
async def anyio_hub(closed_files, anyio_backend):
    async with aiommap.Hub() as hub:
        yield hub


@pytest.mark.anyio
async def test_file_of_anyio_fixture(anyio_file, path, closed_files):
    closed_files.append((anyio_file, await write_and_check(anyio_file, path)))


@pytest.mark.anyio
async def test_hub_of_anyio_fixture(anyio_hub, path, closed_files):
    async with anyio.create_task_group() as group:

        async def use():
            f = await anyio_hub.open(path, "r+")
            closed_files.append((f, await f.write(0, b"concurrent")))

        for _ in range(3):
            group.start_soon(use)


@pytest.mark.anyio
async def test_file_closed_in_another_task(path, closed_files):
    """The task that opened it has ended, and so has the scope it was opened in."""
    opened = []

    async def open_it():
        with anyio.move_on_after(20):
            opened.append(await aiommap.open(path, "r+"))

    async with anyio.create_task_group() as group:
        group.start_soon(open_it)
    (f,) = opened
    closed_files.append((f, await write_and_check(f, path)))
    async with anyio.create_task_group() as group:
        group.start_soon(f.aclose)
