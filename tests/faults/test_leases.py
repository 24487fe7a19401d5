"""Files under a lease, as Samba and NFS servers take them: only opening such a file waits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager

import anyio
import anyio.to_thread
import pytest

import aiommap
from tests.support.internals import leases as _leases

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's"),
]

#: Takes a lease, reports it, reports when the kernel asks for it, and gives it back on command.
HOLDER = """
import fcntl, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
signal.sigwait({signal.SIGIO})
print("asked", flush=True)
sys.stdin.readline()
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
sys.stdin.readline()
"""


class Holder:
    """A process that has a lease."""

    def __init__(self, process):
        self._process = process

    async def asked(self):
        assert await anyio.to_thread.run_sync(self._process.stdout.readline) == b"asked\n"

    def give_back(self):
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()


@contextmanager
def leased(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            if process.stdout.readline() != b"leased\n":
                pytest.skip(process.stderr.read().decode().splitlines()[-1])
            yield Holder(process)
        finally:
            process.kill()


async def first_bytes(opened):
    if isinstance(opened, aiommap.MappedFile):
        return await opened.read(0, 4)
    if isinstance(opened, aiommap.LiveSnapshot):
        return await opened.current.read_exact(0, 4)
    return await opened.read_exact(0, 4)


@pytest.mark.parametrize(
    "opener",
    [
        aiommap.open,
        lambda path: aiommap.open(path, "r+"),
        lambda path: aiommap.open(path, "c"),
        aiommap.Snapshot.open,
        aiommap.MappedBackend.open,
        aiommap.FileBackend.open,
        aiommap.follow,
    ],
    ids=["open", "r+", "c", "Snapshot", "MappedBackend", "FileBackend", "follow"],
)
async def test_open_under_a_lease(path, opener):
    found = []

    async def open_it():
        async with opener(path) as opened:
            found.append(await first_bytes(opened))

    with anyio.fail_after(100), leased(path) as holder:
        async with anyio.create_task_group() as group:
            group.start_soon(open_it)
            await holder.asked()
            assert not found
            holder.give_back()
    assert found == [b"AAAA"]


async def test_overwrite_under_a_lease(path):
    old = path.read_bytes()
    with anyio.fail_after(100), leased(path) as holder:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(aiommap.open(path, "w+", size=1).__aenter__)
                await holder.asked()
                scope.cancel()
        assert scope.cancelled_caught
        assert os.stat(path).st_size == len(old)
    assert path.read_bytes() == old


async def test_other_files_open_meanwhile(tmp_path, path):
    """Openings that wait hold neither the queue nor a worker, whether they go on or give up."""
    other = tmp_path / "other"
    other.write_bytes(b"bytes")
    with anyio.fail_after(100), leased(path) as holder:
        async with aiommap.Hub() as hub, anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(hub.open(path).__aenter__)
                group.start_soon(aiommap.FileBackend.open(path, hub=hub).__aenter__)
            await holder.asked()
            for _ in range(3):
                async with hub.open(other) as f, aiommap.FileBackend.open(other, hub=hub) as b:
                    assert await f.read(0, 5) == await b.read_exact(0, 5)
            group.cancel_scope.cancel()
        async with aiommap.open(other):
            pass


async def test_hub_ends_while_an_open_waits(path):
    errors = []

    async def open_it(hub):
        try:
            await hub.open(path)
        except anyio.ClosedResourceError as error:
            errors.append(error)

    with anyio.fail_after(100), leased(path) as holder:
        async with anyio.create_task_group() as group, aiommap.Hub() as hub:
            group.start_soon(open_it, hub)
            await holder.asked()
    assert len(errors) == 1


async def test_follow_of_a_leased_file_that_comes(tmp_path, path):
    """A leased file that is renamed into place is in service once its lease is given back."""
    new = tmp_path / "new"
    new.write_bytes(b"new!")
    failures = []
    with anyio.fail_after(100):
        async with aiommap.follow(path, on_error=failures.append) as live:
            with leased(new) as holder:
                os.replace(new, path)
                await holder.asked()
                assert await live.current.read_exact(0, 4) == b"AAAA"
                holder.give_back()
                generations = aiter(live)
                while live.generation < 2:
                    await anext(generations)
                assert await live.current.read_exact(0, 4) == b"new!"
    assert failures == []


async def test_lease_that_is_kept(path, monkeypatch):
    """A file system may answer EAGAIN for ever; the kernel lets nobody keep a lease so long."""
    monkeypatch.setattr(_leases, "_break_seconds", lambda: 0.0)
    with leased(path), pytest.raises(BlockingIOError, match="has a lease on it") as caught:
        await aiommap.open(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EAGAIN, str(path))
