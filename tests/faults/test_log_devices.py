"""Logs on full disks and failing devices: what fails, what latches, and what goes on (L12)."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from contextlib import contextmanager

import anyio
import pytest

import aiommap
from aiommap import FlushPolicy, Log
from tests.powercut.mount import missing, mounted
from tests.support.devices import fill
from tests.support.disks import disk_with, sync
from tests.support.fork_server import run_code
from tests.support.logs import ALWAYS, SEGMENT, contents, make, pure_records, reopened, segments

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def mount(tmp_path):
    if missing() is not None:
        pytest.skip(missing())
    with mounted(tmp_path) as mount:
        yield mount


@pytest.mark.parametrize("fault", ["full_tmpfs", "full_ext4"])
async def test_full_disk_at_a_roll(fault, tmp_path):
    """An append that finds no room fails alone; later ones succeed once there is room."""
    with disk_with(fault, tmp_path) as disk:
        log = await Log.open(disk / "log", flush=ALWAYS, segment_size=SEGMENT)
        async with log:
            stored, caught = 0, None
            while caught is None:
                try:
                    await log.append(bytes(3000))
                    stored += 1
                except OSError as error:
                    caught = error
            assert caught.errno == errno.ENOSPC
            assert not isinstance(caught, aiommap.FlushError)
            assert str(disk) in str(caught.filename)
            assert log.last == log.durable == stored
            for _ in range(3):  # it does not latch
                with pytest.raises(OSError, match="No space left"):
                    await log.append(bytes(3000))
            await log.append(b"")  # an empty record still fits into the segment
            await log.discard(log.last)
            await log.append(bytes(3000))
            assert log.last == stored + 2
            last = log.last
            assert len(await contents(log)) == last - log.first + 1
        async with Log.open(disk / "log", segment_size=SEGMENT) as log:
            assert (log.last, log.recovered) == (last, None)
            assert len(pure_records(disk / "log")) == last - log.first + 1


@pytest.mark.parametrize("fault", ["full_tmpfs", "full_ext4"])
async def test_full_disk_at_creation(fault, tmp_path):
    with disk_with(fault, tmp_path) as disk:
        with pytest.raises(OSError, match="No space left"):
            await Log.open(disk / "log")
        async with Log.open(disk / "log", segment_size=SEGMENT) as log:
            await log.append(b"x")
        assert await reopened(disk / "log") == [b"x"]


async def test_full_disk_with_the_standby_of_a_crash(tmp_path):
    """The standby goes before the first segment is made, which needs its room."""
    with disk_with("full_tmpfs", tmp_path) as disk:
        folder = disk / "log"
        folder.mkdir()
        (folder / "standby-0123abcd.tmp").write_bytes(bytes(600 << 10))
        async with Log.open(folder, segment_size=600 << 10) as log:
            await log.append(b"x")
        assert await reopened(folder) == [b"x"]


async def test_full_disk_without_room_for_control(tmp_path):
    with disk_with("full_tmpfs", tmp_path) as disk:
        fill(disk / "filler")
        with pytest.raises(OSError, match="No space left"):
            await Log.open(disk / "log")
        (disk / "filler").unlink()
        await make(disk / "log", b"x")
        assert await reopened(disk / "log") == [b"x"]


async def test_descriptors_run_out_at_a_roll(tmp_path):
    """Nothing was stored, so nothing latches, and the same life goes on (I5)."""
    async with Log.open(tmp_path / "log", segment_size=SEGMENT) as log:
        await log.append(bytes(20_000))
        with no_descriptors():
            for _ in range(2):
                with pytest.raises(OSError, match="Too many open files"):
                    await log.append(bytes(50_000))
        await log.append(bytes(50_000))
        assert (log.last, log.life) == (2, 1)
        assert len(segments(tmp_path / "log")) == 2


@contextmanager
def no_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_segment_that_cannot_be_unlinked(tmp_path):
    """The discard raises, and the next one removes the segment; appends are not affected."""
    folder = tmp_path / "log"
    async with Log.open(folder, segment_size=SEGMENT, retain_bytes=2 * SEGMENT) as log:
        for _ in range(2):
            await log.append(bytes(50_000))
        oldest = segments(folder)[0]
        if subprocess.run(["chattr", "+i", oldest], capture_output=True).returncode:
            pytest.skip("files cannot be made immutable here")
        try:
            for _ in range(5):
                await log.append(bytes(50_000))
            with pytest.raises(PermissionError) as caught:
                await log.discard(log.last)
            assert caught.value.filename == str(oldest)
            assert len(await contents(log)) == log.last + 1 - log.first == 1
        finally:
            subprocess.run(["chattr", "-i", oldest], check=True)
        await log.discard(log.last)
        assert len(segments(folder)) == 1
        await (await log.append(b"x")).wait_durable()


async def test_limit_on_file_sizes_is_told(folder_and_limit):
    folder, done = folder_and_limit
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("File too large for a record, which is not in the log: ")
    assert await reopened(folder) == []


@pytest.fixture
def folder_and_limit(tmp_path):

    code = """
import sys, signal, resource, anyio, aiommap
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
async def main():
    async with aiommap.Log.open(sys.argv[1], segment_size=65536) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
        try:
            await log.append(b"x" * 50000)
        except OSError as error:
            print(error.strerror)
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
anyio.run(main)
"""
    folder = tmp_path / "log"
    return folder, run_code(code.replace("(-1, -1)", "(40000, 40000)"), folder)


def test_limit_on_file_sizes_is_told_by_open(tmp_path):
    code = """
import sys, resource, anyio, aiommap
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
async def main():
    async with aiommap.Log.open(sys.argv[1], segment_size=65536):
        pass
anyio.run(main)
"""
    done = run_code(code, tmp_path / "log")
    assert "File too large: 65536 bytes, and RLIMIT_FSIZE allows 40000: " in done.stderr


async def test_failed_flush_latches(mount):
    """Readers go on, every verb of the writer raises, and the next writer rewrites the records."""
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        await log.append(b"durable")
        await log.flush()
        receipt = await log.append(b"not durable")
        mount.fail("fsync", segments(mount.path)[0].name)
        with pytest.raises(aiommap.FlushError) as caught:
            await receipt.wait_durable()
        assert caught.value.path == str(segments(mount.path)[0])
        assert caught.value.ranges
        raised = []
        for verb in (log.append(b"x"), log.append_many([b"x"]), log.flush(), log.discard(1)):
            with pytest.raises(aiommap.FlushError) as again:
                await verb
            raised.append(again.value)
        assert {(error.path, *error.args) for error in raised} == {
            (caught.value.path, *caught.value.args)
        }
        assert len({id(error) for error in raised}) == 4  # one would keep the frames of all callers
        assert not receipt.durable
        assert log.durable == 1
        assert await contents(log) == [b"durable", b"not durable"]
        async with Log.open(mount.path, "r") as reader:
            assert (reader.last, reader.durable) == (2, 1)
            assert await contents(reader) == [b"durable", b"not durable"]
        with pytest.raises(aiommap.FlushError):
            await log.aclose()
    # The log is closed all the same; aclose raised, so the end of the block does not raise again.


async def test_failed_flush_at_a_roll_latches(mount):
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        await log.append(bytes(40_000))
        mount.fail("fsync", segments(mount.path)[0].name)
        with pytest.raises(aiommap.FlushError):
            await log.append(bytes(40_000))
        assert len(segments(mount.path)) == 1
        with pytest.raises(aiommap.FlushError):
            await log.aclose()
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        assert log.last == 1
        assert log.recovered.rewritten >= 40_000


async def test_failed_folder_sync_latches(mount):
    async with Log.open(mount.path, segment_size=SEGMENT, flush=ALWAYS) as log:
        await log.append(bytes(40_000))
        mount.fail("fsync", ".")
        with pytest.raises(aiommap.FlushError):
            await log.append(bytes(40_000))
        with pytest.raises(aiommap.FlushError):
            await log.aclose()
    assert len(await reopened(mount.path)) == 1


@pytest.mark.parametrize("policy", [ALWAYS, FlushPolicy.manual()], ids=["always", "manual"])
async def test_refused_store_latches(mount, policy):
    """EIO of a write means that the device is broken, and half a batch may be on it."""
    async with Log.open(mount.path, segment_size=SEGMENT, flush=policy) as log:
        await log.append(b"before")
        mount.fail("write", segments(mount.path)[0].name)
        with pytest.raises(aiommap.FlushError):
            await log.append(b"refused")
        with pytest.raises(aiommap.FlushError):
            await log.append(b"after")
        assert await contents(log) == [b"before"]
        with pytest.raises(aiommap.FlushError):
            await log.aclose()
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        assert await contents(log) == [b"before"]
        await log.append(b"again")
    assert [data for _, _, data in pure_records(mount.path)] == [b"before", b"again"]


@pytest.mark.parametrize("policy", [ALWAYS, FlushPolicy.manual()], ids=["always", "manual"])
async def test_stopped_server_stops_no_loop(mount, policy):
    """Only tasks that append, flush or read wait for the stopped FUSE server."""
    async with Log.open(mount.path, segment_size=SEGMENT, flush=policy) as log:
        await log.append(b"before")
        async with Log.open(mount.path, "r") as reader, anyio.create_task_group() as group:
            done = []

            async def wait_for(verb, *arguments):
                await verb(*arguments)
                done.append(verb)

            verbs = (log.append, b"amid"), (log.append_many, [b"and", b"more"]), (log.flush,)
            with mount.stopped():
                for verb in (*verbs, (contents, reader)):
                    group.start_soon(wait_for, *verb)
                for _ in range(100):
                    await anyio.sleep(0.001)
                assert (done, log.last) == ([], 1)
        assert log.durable == log.last == 4
        assert log.statistics().write_path == "worker"
    assert await reopened(mount.path) == [b"before", b"amid", b"and", b"more"]


async def test_unreadable_segment_is_an_error_with_its_path(mount):
    await make(mount.path, b"x")
    sync(mount.path)
    async with Log.open(mount.path, "r") as reader:
        drop_caches()
        mount.fail("read", segments(mount.path)[0].name)
        with pytest.raises(OSError, match="Input/output error") as caught:
            await contents(reader)
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(("kind", "mode"), [("read", "a"), ("read", "r"), ("write", "a")])
async def test_error_of_the_control_file_names_it(mount, kind, mode):
    await make(mount.path, b"x")
    sync(mount.path)
    drop_caches()
    mount.fail(kind, "control")
    with pytest.raises(OSError, match="Input/output error") as caught:
        await reopened(mount.path, mode)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, f"{mount.path}/control")


async def test_unflushed_control_file_is_named(mount):
    log = await Log.open(mount.path, segment_size=SEGMENT)
    await log.append(b"x")
    mount.fail("fsync", "control")
    with pytest.raises(OSError, match="Input/output error") as caught:
        await log.aclose()
    assert caught.value.filename == f"{mount.path}/control"
    assert await reopened(mount.path) == [b"x"]


@pytest.mark.parametrize(
    "policy", [FlushPolicy.manual(), FlushPolicy.never()], ids=["manual", "never"]
)
async def test_what_was_refused_does_not_come_back(mount, policy):
    """Some of the bytes reached the file; closing overwrites them, as the next append would."""
    async with Log.open(mount.path, segment_size=8 << 20, flush=policy) as log:
        await log.append(b"before")
        name = segments(mount.path)[0].name
        mount.fail("write", name, nth=2, number=errno.ENOSPC, times=100)
        with pytest.raises(OSError, match="No space left"):
            await log.append_many([bytes(4096)] * 512)
        mount.fail("write", name, nth=1 << 30)  # there is room again
        assert log.last == 1
    async with Log.open(mount.path, segment_size=8 << 20) as log:
        assert await contents(log) == [b"before"]
        assert log.life == 3


def drop_caches():
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("1")


async def test_standbys_without_tmpfile(mount):
    """Each standby has its own name, because a roll may make another meanwhile; none stays."""
    (mount.path / "standby-0123abcd.tmp").touch()  # a crash left it
    async with Log.open(mount.path, segment_size=SEGMENT) as log:
        for i in range(60):
            await log.append(b"%02d" % i * 4000)
        assert log.statistics().rolls >= 6
    assert [data[:2] for _, _, data in pure_records(mount.path)] == [b"%02d" % i for i in range(60)]
    assert not [name for name in os.listdir(mount.path) if name.startswith("standby")]


async def test_unlinked_segment_is_no_success(tmp_path):
    async with Log.open(tmp_path / "log") as log:
        await log.append(b"x")
        segments(tmp_path / "log")[0].unlink()
        with pytest.raises(aiommap.FlushError, match="unlinked by somebody else"):
            await log.flush()
        with pytest.raises(aiommap.FlushError):
            await log.aclose()


async def append_and_flush(log, records):
    for _ in range(records):
        await log.append(bytes(1000))
    await log.append_many([bytes(1000)] * 3)
    await log.flush()


@pytest.mark.parametrize("length", [0, 4500])
@pytest.mark.parametrize("policy", ["always", "manual", "every_writes"])
async def test_appends_behind_a_cut_are_no_success(tmp_path, policy, length):
    """They make the segment longer again, but a reader never comes to them."""
    flush = FlushPolicy.every_writes(2) if policy == "every_writes" else None
    flush = flush or getattr(FlushPolicy, policy)()
    async with Log.open(tmp_path / "log", flush=flush) as log:
        await (await log.append(bytes(1000))).wait_durable()
        os.truncate(segments(tmp_path / "log")[0], length)
        with pytest.raises(aiommap.FlushError, match="truncated by somebody else") as caught:
            await append_and_flush(log, 1)
        assert caught.value.path == str(segments(tmp_path / "log")[0])
        assert log.durable == 1
        with pytest.raises(aiommap.FlushError):
            await log.aclose()


async def test_roll_behind_a_cut_is_no_success(tmp_path):
    async with Log.open(tmp_path / "log", segment_size=SEGMENT) as log:
        await log.append(bytes(1000))
        os.truncate(segments(tmp_path / "log")[0], 0)
        with pytest.raises(aiommap.FlushError, match="truncated by somebody else"):
            await append_and_flush(log, 70)
        assert log.durable == 0
        with pytest.raises(aiommap.FlushError):
            await log.aclose()


async def test_record_longer_than_its_segment_is_no_cut(tmp_path):
    """The first record of a segment goes in whatever its size, and makes the file longer."""
    async with Log.open(tmp_path / "log", segment_size=SEGMENT):
        pass
    async with Log.open(tmp_path / "log", segment_size=4 * SEGMENT, flush=ALWAYS) as log:
        assert (await log.append(bytes(2 * SEGMENT))).durable
        assert (await log.append(b"x")).durable
    assert [len(data) for data in await reopened(tmp_path / "log")] == [2 * SEGMENT, 1]


async def test_truncated_segment_is_no_success(tmp_path):
    async with Log.open(tmp_path / "log") as log:
        await log.append(bytes(1000))
        os.truncate(segments(tmp_path / "log")[0], 4500)
        with pytest.raises(aiommap.FlushError, match="truncated by somebody else"):
            await log.flush()
        with pytest.raises(aiommap.CorruptRecordError):
            await contents(log)
        with pytest.raises(aiommap.FlushError):
            await log.aclose()


async def test_truncated_control_kills_nobody(tmp_path):
    """A load from its lost page is a fault, which becomes an error (I6)."""
    async with Log.open(tmp_path / "log") as log:
        await log.append(b"x")
        async with Log.open(tmp_path / "log", "r") as reader:
            os.truncate(tmp_path / "log" / "control", 0)
            with pytest.raises(aiommap.MappingFaultError):
                await contents(reader)
            with pytest.raises(aiommap.FlushError, match="the control file was truncated by"):
                await log.append(b"y")
        with pytest.raises(aiommap.FlushError):
            await log.aclose()


async def test_frozen_disk_stops_appends_only(tmp_path):
    """With ``inline_writes=False`` the loop goes on while the file system is frozen."""
    with disk_with("full_ext4", tmp_path) as disk:
        async with Log.open(disk / "log", segment_size=SEGMENT, inline_writes=False) as log:
            await log.append(b"x")
            if subprocess.run(["fsfreeze", "-f", disk], capture_output=True).returncode:
                pytest.skip("the file system cannot be frozen here")
            turns = 0
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(log.append, b"y")
                    while turns < 50:
                        await anyio.sleep(0.001)
                        turns += 1
                    assert log.last == 1
                    subprocess.run(["fsfreeze", "-u", disk], check=True)
            finally:
                subprocess.run(["fsfreeze", "-u", disk], capture_output=True)
            assert await contents(log) == [b"x", b"y"]
