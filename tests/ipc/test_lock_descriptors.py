"""Locks without a descriptor of their own: no privileges, no /proc, or no free descriptor."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager

import anyio
import pytest

import aiommap
from tests.support.fork_server import run_code

SCRIPT = """
import fcntl, os, struct, sys
import anyio, aiommap

path, backend, lost = sys.argv[1:]

def free(offset):
    fd = stranger
    request = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except BlockingIOError:
        return False
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", fcntl.F_UNLCK, 0, offset, 1, 0))
    return True

async def use(f):
    lock = aiommap.AsyncLock(f, 64)
    async with f.file_lock(0, 8), lock:
        assert not free(0) and not free(64) and free(8)
    assert free(0) and free(64)
    async with f.file_lock(0, 8, shared=True), f.file_lock(4, 8, shared=True):
        assert not free(11)
    assert free(0) and free(11)

async def main():
    global stranger
    stranger = os.open(path, os.O_RDWR)
    f = await aiommap.open(path, "r+")
    view = f.view(0, 4096).memory  # keeps the file's description open
    os.chmod(path, 0o600)
    if lost == "privileges":
        os.seteuid(65534)
    elif lost == "proc":
        os.chroot(os.path.dirname(path))
    elif lost == "descriptors":
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    await use(f)
    block = f.file_lock(0, 8)
    await block.__aenter__()
    assert not free(0)
    pid = os.fork()
    if not pid:  # the child keeps no byte locked while it lives, and its end unlocks none
        os.read(held[0], 1)
        os._exit(0)
    os.write(held[1], b"x")
    os.waitpid(pid, 0)
    assert not free(0)
    await f.aclose()
    assert free(0) and view[0] is not None
    print("done")

held = os.pipe()
anyio.run(main, backend=backend)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("lost", ["nothing", "privileges", "proc", "descriptors"])
def test_lock_without_a_descriptor(path, backend, lost):
    ended = run_code(SCRIPT, path, backend, lost)
    assert ended.stdout == "done\n", ended.stderr


@contextmanager
def no_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.anyio
async def test_huge_pages_without_a_descriptor(path):
    async with aiommap.open(path) as f:
        with no_descriptors(), pytest.raises(OSError, match="Too many open files") as caught:
            await f.huge_page_bytes()
        assert caught.value.filename == str(path)


@pytest.mark.anyio
async def test_lock_held_through_reopen(path):
    """The lock is on the description of the file itself, for want of another descriptor."""
    async with aiommap.open(path, "r+") as f, aiommap.open(path, "r+") as other:
        with no_descriptors():
            block = f.file_lock(0, 8)
            await block.__aenter__()
        replacement = path.with_name("other")
        replacement.write_bytes(bytes(4096))
        replacement.rename(path)
        await f.reopen()
        with pytest.raises(TimeoutError):
            await other.file_lock(0, 8, timeout=0.05).__aenter__()
        await block.__aexit__(None, None, None)
        with anyio.fail_after(100):
            async with other.file_lock(0, 8):
                pass
        await other.reopen(discard=True)
