"""Files opened by a descriptor, descriptors of open files, and anonymous memory."""

from __future__ import annotations

import array
import copy
import fcntl
import gc
import mmap
import os
import pickle
import socket
import tempfile

import anyio
import anyio.to_thread
import numpy as np
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import AccessModeError, FlushError, FlushPolicy, Snapshot, UnsupportedError
from tests.support.scripts import expect_alive
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", ["r", "r+", "c", "a+"])
async def test_open_descriptor(path, mode):
    with open(path, "r+b") as given:
        opening = aiommap.open(given.fileno(), mode)
    async with opening as f:  # duplicated when it was passed
        assert (f.path, f.size, f.mode) == (str(path), 16 * PAGE, mode)
        assert await f.read(PAGE, 4) == b"BBBB"
        if mode != "r":
            await f.write(0, b"new")
            await f.flush()
        if mode == "a+":
            assert (await f.append(b"more")).offset == 16 * PAGE
    start = path.read_bytes()[:3]
    assert start == (b"new" if mode in ("r+", "a+") else b"AAA")


async def test_open_descriptor_leaves_it_alone(path):
    """Its position and flags stay as they are, and may be of any kind."""
    given = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        os.lseek(given, 7, os.SEEK_SET)
        flags = fcntl.fcntl(given, fcntl.F_GETFL)
        async with aiommap.open(given, "r+") as f:
            await f.write(0, b"start")  # an O_APPEND of ours would put it at the end
            await f.prewarm()
            await f.read(0, f.size)
            with pytest.raises(aiommap.OutOfBoundsError):
                await f.read(f.size, 1)
        assert os.lseek(given, 0, os.SEEK_CUR) == 7
        assert fcntl.fcntl(given, fcntl.F_GETFL) == flags
        assert os.fstat(given).st_size == 16 * PAGE
    finally:
        os.close(given)
    assert path.read_bytes()[:5] == b"start"


@pytest.mark.parametrize(
    ("flags", "modes", "found"),
    [
        (os.O_RDONLY, ["r+", "w+", "a+"], "O_RDONLY"),
        (os.O_WRONLY, ["r", "r+", "c"], "O_WRONLY"),
        (os.O_PATH, ["r", "r+", "c"], "O_PATH"),
    ],
)
async def test_open_descriptor_checks_its_access(path, flags, modes, found):
    given = os.open(path, flags)
    before = len(os.listdir("/proc/self/fd"))
    try:
        for mode in modes:
            size = 1 if mode == "w+" else None
            with pytest.raises(AccessModeError, match=f"descriptor {given} has to be") as caught:
                aiommap.open(given, mode, size=size)
            assert caught.value.mode == found
        assert len(os.listdir("/proc/self/fd")) <= before
    finally:
        os.close(given)
    assert path.stat().st_size == 16 * PAGE


async def test_open_descriptor_refuses_what_it_cannot_be(path):
    for number in (9999, 2**40):
        with pytest.raises(OSError, match=f"descriptor {number} is not open"):
            aiommap.open(number)
    with pytest.raises(ValueError, match="negative"):
        aiommap.open(-1)
    with pytest.raises(TypeError, match=r"path is True: .* or the number of a descriptor"):
        aiommap.open(True)
    with open(path, "r+b") as given, pytest.raises(ValueError, match="is one already"):
        aiommap.open(given.fileno(), "x+", size=1)
    reading, writing = os.pipe()
    try:
        with pytest.raises(UnsupportedError, match="pipe"):
            await aiommap.open(reading)
    finally:
        os.close(reading)
        os.close(writing)


async def test_open_descriptor_overwrites(path):
    with open(path, "r+b") as given:
        async with aiommap.open(given.fileno(), "w+", size=10) as f:
            await f.write(0, b"new")
    assert path.read_bytes() == b"new" + bytes(7)


async def test_open_descriptor_once(path):
    with open(path, "rb") as given:
        opening = aiommap.open(given.fileno())
    async with opening:
        pass
    with pytest.raises(anyio.ClosedResourceError, match="pass it once more"):
        await opening


async def test_open_descriptor_never_entered_leaks_nothing(path):
    before = len(os.listdir("/proc/self/fd"))
    with open(path, "r+b") as given:
        for _ in range(5):
            aiommap.open(given.fileno())
            with pytest.raises(ValueError, match="capacity"):
                await aiommap.open(given.fileno(), "r+", capacity=1)
    gc.collect()  # the last exception refers to its opening
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_open_descriptor_with_a_path_is_as_by_path(path):
    with open(path, "r+b") as given:
        f = await aiommap.open(given.fileno(), "r+")
    async with f:
        path.rename(path.with_name("moved"))
        path.write_bytes(b"another")
        await f.reopen()
        assert await f.read(0, 7) == b"another"
        async with f.watch():
            pass
        async with pickle.loads(pickle.dumps(f)) as other:
            assert other.path == str(path)


async def test_open_descriptor_of_unlinked_file(path):
    """The library never saw a name of the file, so its flush can succeed (I4)."""
    with open(path, "r+b") as given:
        path.unlink()
        async with aiommap.open(given.fileno(), "r+") as f:
            assert f.path is None
            receipt = await f.write(0, b"x")
            await receipt.wait_durable()
            assert receipt.durable
            await f.append(b"more")
            for verb in (f.reopen, f.watch, lambda: f.on_change(print)):
                with pytest.raises(UnsupportedError, match="without a path"):
                    await verb()
            with pytest.raises(TypeError, match="fileno"):
                pickle.dumps(f)
            await f.refresh()
        assert os.pread(given.fileno(), 1, 0) == b"x"


async def test_open_descriptor_of_file_unlinked_later(path):
    """The file had a name, and its flushed bytes are gone at close: that is an error (I4)."""
    with open(path, "r+b") as given:
        f = await aiommap.open(given.fileno(), "r+")
        path.unlink()
        await f.write(0, b"x")
        with pytest.raises(FlushError, match="no name left"):
            await f.flush()
        with pytest.raises(FlushError):
            await f.aclose()


async def test_open_descriptor_of_temporary_file(tmp_path):
    with tempfile.TemporaryFile(dir=tmp_path) as given:
        given.write(b"spam")
        given.flush()
        async with aiommap.open(given.fileno(), "r+", capacity=PAGE) as f:
            assert f.path is None
            await f.append(b" and eggs")
            await f.flush()
        given.seek(0)
        assert given.read() == b"spam and eggs"


def test_open_descriptor_that_only_its_giver_may_open(tmp_path):
    """Another user cannot open the file again, so both share the description and its flags."""
    code = """
        made = make()
        os.chmod(made, 0o600)
        plain, appending = os.open(made, os.O_RDWR), os.open(made, os.O_RDWR | os.O_APPEND)

        async def main():
            async with aiommap.open(plain, "r+") as f:
                assert await f.read(0, 4) == b"oooo"
                await f.write(0, b"new")
                await f.flush()
            assert os.pread(plain, 3, 0) == b"new"
            for mode in ("r+", "r"):
                try:
                    await aiommap.open(appending, mode)
                except aiommap.UnsupportedError as error:
                    assert "O_APPEND" in str(error), error
                else:
                    raise AssertionError(mode)
            print("alive")

        os.setgid(65534)
        os.setuid(65534)
        run(main)
    """
    if os.geteuid():
        pytest.skip("only root can become another user")
    expect_alive(code, tmp_path)


# Descriptors of open files.


async def test_fileno_of_file(path):
    async with aiommap.open(path, "r+") as f:
        assert os.path.samestat(os.fstat(f.fileno()), path.stat())
        with mmap.mmap(f.fileno(), 0) as mapped:
            await f.write(0, b"seen")
            assert mapped[:4] == b"seen"
    with pytest.raises(anyio.ClosedResourceError):
        f.fileno()


async def test_fileno_of_snapshot_file(path):
    """NumPy, mmap and pandas read by it; nobody else moves its position."""
    data = path.read_bytes()

    def use(file):
        file.seek(PAGE)
        assert np.fromfile(file, np.uint8, 10).tobytes() == data[PAGE : PAGE + 10]
        assert file.tell() == PAGE + 10
        assert file.read(2) == data[PAGE + 10 : PAGE + 12]
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert mapped[:] == data
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == file.tell()
        number = file.fileno()
        file.close()
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(number)

    async with Snapshot.open(path) as snapshot:
        file = snapshot.file()
        with pytest.raises(RuntimeError, match="worker thread"):
            file.fileno()
        await anyio.to_thread.run_sync(use, file)
        with pytest.raises(ValueError, match="closed"):
            file.fileno()


# Anonymous memory.


async def test_memory_has_the_verbs_of_a_file():
    async with aiommap.open_memory(3 * PAGE, capacity=8 * PAGE) as f:
        assert (f.path, f.mode, f.size) == (None, "w+", 3 * PAGE)
        assert f.capacity == 8 * PAGE
        assert "anonymous memory" in repr(f)
        assert await f.read(0, f.size) == bytes(f.size)
        await f.write(PAGE, b"hello")
        with f.view(PAGE, 5) as view:
            assert view.memory.tobytes() == b"hello"
        assert f.atomic_u64(0).fetch_add(2) == 0
        assert (await f.append(b"end")).offset == 3 * PAGE
        await f.resize(7 * PAGE)
        await f.ensure(8 * PAGE)
        await f.punch_hole(PAGE, PAGE)
        assert await f.find(b"end") == 3 * PAGE
        async with f.file_lock(0, 1), f.locked():
            pass
        for verb in (f.reopen, f.watch):
            with pytest.raises(UnsupportedError, match="anonymous memory"):
                await verb()
        for wrong in (pickle.dumps, copy.copy):
            with pytest.raises(TypeError):
                wrong(f)
    async with aiommap.open_memory(0) as f:
        await f.append(b"x")


async def test_memory_is_never_durable():
    async with aiommap.open_memory(PAGE) as f:
        receipt = await f.write(0, b"x")
        await f.flush()
        await f.flush_range(0, 1)
        await f.flush_range(receipt)
        assert not receipt.durable
        assert f.flush_policy == FlushPolicy.never()
        with pytest.raises(UnsupportedError, match="durable"):
            await receipt.wait_durable()
        for policy in (FlushPolicy.always(), FlushPolicy.every_bytes(1)):
            with pytest.raises(UnsupportedError, match="nothing is durable"):
                f.flush_policy = policy
            with pytest.raises(UnsupportedError, match="nothing is durable"):
                await aiommap.open(f.fileno(), "r+", flush=policy)
        async with aiommap.open(f.fileno(), "r+") as other:
            assert not (await other.write(0, b"y")).durable
            with pytest.raises(UnsupportedError):
                await (await other.append(b"z")).wait_durable()


async def test_memory_sealed_keeps_its_size():
    async with aiommap.open_memory(PAGE, seal=True) as f:
        await f.write(0, b"still writable")
        for verb, argument in ((f.resize, 5), (f.ensure, PAGE), (f.append, b"x")):
            with pytest.raises(AccessModeError, match="its size is fixed"):
                await verb(argument)
        with pytest.raises(PermissionError):
            os.ftruncate(f.fileno(), 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(f.fileno(), 1033, 8)  # F_ADD_SEALS, F_SEAL_WRITE: nobody can seal more
        async with aiommap.open(f.fileno(), "r+") as other:
            with pytest.raises(AccessModeError, match="its size is fixed"):
                await other.append(b"x")
            assert await other.read(0, 5) == b"still"
    with pytest.raises(ValueError, match="capacity"):
        aiommap.open_memory(1, capacity=2, seal=True)
    with pytest.raises(TypeError, match="seal"):
        aiommap.open_memory(1, seal=1)
    with pytest.raises(ValueError, match="size is -1"):
        aiommap.open_memory(-1)


async def test_memory_sealed_against_writing():
    async with aiommap.open_memory(PAGE) as f:
        await f.write(0, b"final")
        given = os.dup(f.fileno())
    try:
        fcntl.fcntl(given, 1033, 8)  # F_ADD_SEALS, F_SEAL_WRITE
        with pytest.raises(AccessModeError, match="sealed against writing"):
            await aiommap.open(given, "r+")
        for mode in ("r", "c"):
            async with aiommap.open(given, mode) as f:
                assert await f.read(0, 5) == b"final"
    finally:
        os.close(given)


def test_memory_shared_with_another_process(tmp_path):
    """Passed over a socket, it is one memory, which both processes change and wait for."""
    code = """
        import socket

        async def child(end):
            _, (given,), _, _ = socket.recv_fds(end, 1, 1)
            async with aiommap.open(given, "r+") as f:
                os.close(given)
                assert await f.read(8, 5) == b"hello"
                await f.write(16, b"answer")
                word = f.atomic_u32(0)
                word.store(1)
                word.notify()

        ours, theirs = socket.socketpair()
        number = os.fork()
        if not number:
            anyio.run(child, theirs)
            os._exit(0)

        async def main():
            async with aiommap.open_memory(PAGE, seal=True) as f:
                await f.write(8, b"hello")
                socket.send_fds(ours, [b"x"], [f.fileno()])
                with anyio.fail_after(100):
                    assert await f.atomic_u32(0).wait(0) == 1
                assert await f.read(16, 6) == b"answer"
            assert os.waitpid(number, 0)[1] == 0
            print("alive")

        run(main)
    """
    expect_alive(code, tmp_path)


async def test_open_received_descriptor(path):
    """A descriptor that came over SCM_RIGHTS, as other languages send it."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(path, "rb") as given:
        rights = array.array("i", [given.fileno()])
        ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        _, (received,), _, _ = socket.recv_fds(theirs, 1, 1)
        async with aiommap.open(received) as f:
            os.close(received)
            assert await f.read(0, 1) == b"A"
