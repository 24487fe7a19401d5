"""The directory entry of a new file is durable before any of its bytes count as durable (I4)."""

from __future__ import annotations

import errno
import logging
import os
import tempfile

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from tests.powercut.mount import missing, mounted
from tests.support.internals import paths as _paths
from tests.support.scripts import expect_alive
from tests.support.waiting import until

SYNC_FAILS = pytest.mark.skipif(bool(missing()), reason=missing() or "")


@pytest.fixture
def disk(tmp_path):
    with mounted(tmp_path) as mount:
        yield mount


async def new(disk, name="new", **options):
    return await aiommap.open(disk.path / name, "w+", size=4 * PAGE, **options)


FLUSHES = {
    "flush": lambda f, receipt: f.flush(),
    "flush_range": lambda f, receipt: f.flush_range(0, PAGE),
    "wait_durable": lambda f, receipt: receipt.wait_durable(),
    "view": lambda f, receipt: f.view(0, PAGE).flush(),
}


@SYNC_FAILS
@pytest.mark.anyio
class TestSyncFails:
    @pytest.mark.parametrize("flush", FLUSHES.values(), ids=FLUSHES)
    async def test_directory_sync_is_tried_again(self, disk, flush):
        async with await new(disk) as f:
            receipt = await f.write(0, b"data")
            disk.fail("fsync", ".", number=errno.ENOMEM)
            with pytest.raises(aiommap.FlushError, match="flush again") as caught:
                await flush(f, receipt)
            assert (caught.value.errno, caught.value.latched) == (errno.ENOMEM, False)
            assert not receipt.durable
            assert f.statistics().dirty_bytes
            assert not f.statistics().flush_failed
            await flush(f, receipt)
            assert receipt.durable
            await f.write(PAGE, b"more")

    async def test_durable_write_tells_then_tries_again(self, disk):
        async with await new(disk, flush=FlushPolicy.always()) as f:
            disk.fail("fsync", ".", number=errno.ENOMEM)
            with pytest.raises(aiommap.FlushError, match="flush again"):
                await f.write(0, b"data")
            assert await f.read(0, 4) == b"data"
            assert (await f.write(0, b"data")).durable

    async def test_interval_tries_directory_again(self, disk):
        async with await new(disk, flush=FlushPolicy.every_interval(0.01)) as f:
            disk.fail("fsync", ".", number=errno.ENOMEM)
            receipt = await f.write(0, b"data")
            await until(lambda: receipt.durable)

    async def test_close_tells_directory_each_time(self, disk):
        f = await new(disk)
        disk.fail("fsync", ".", number=errno.ENOMEM)
        for _ in range(2):
            with pytest.raises(aiommap.FlushError, match="directory of the new file"):
                await f.aclose()
        assert f._mapping.closed

    async def test_directory_write_failure_latches(self, disk):
        f = await new(disk)
        disk.fail("fsync", ".", number=errno.EIO)
        for _ in range(2):
            with pytest.raises(aiommap.FlushError, match="close the file"):
                await f.flush()
        with pytest.raises(aiommap.FlushError):
            await f.aclose()

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
    async def test_directory_sync_unsupported_told_once(self, disk, caplog, monkeypatch, number):
        monkeypatch.setattr(_paths, "_told", set())  # device numbers are reused
        for name in ("one", "two"):
            disk.fail("fsync", ".", number=number)
            async with await new(disk, name) as f:
                receipt = await f.write(0, b"data")
                await f.flush()
                assert receipt.durable
        told = [r for r in caplog.records if "cannot sync directories" in r.getMessage()]
        assert [record.levelno for record in told] == [logging.WARNING]


@pytest.mark.anyio
async def test_flush_gives_the_directory_up(tmp_path):
    def held():
        return [fd for fd in os.listdir("/proc/self/fd") if leads_to(fd, tmp_path)]

    async with aiommap.open(tmp_path / "new", "w+", size=PAGE) as f:
        await f.flush()
        assert not held()


def leads_to(fd, path):
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except OSError:
        return False


NEW = """
import resource, stat

async def main():
    {before}
    f = await aiommap.open(path + "/box/new", "w+", size=SIZE)
    receipt = await f.write(0, b"data")
    {after}
    await f.flush()
    assert receipt.durable
    await f.aclose()
    print("alive")

os.mkdir(path + "/box")
run(main)
"""
LIMIT = "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))"
WAYS = {
    "no descriptor": ("", LIMIT),
    "no privileges": ("os.chmod(path, 0o700)", "os.seteuid(65534)"),
    "drop box": ("os.chmod(path + '/box', 0o333); os.seteuid(65534)", ""),
    "drop box without a descriptor": ("os.chmod(path + '/box', 0o333); os.seteuid(65534)", LIMIT),
    "renamed": ("", "os.rename(path + '/box', path + '/moved')"),
    "another one there": ("", "os.rename(path + '/box', path + '/moved'); os.mkdir(path + '/box')"),
    "chroot": ("", "os.mkdir(path + '/empty'); os.chroot(path + '/empty')"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its privileges")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_flush_with_directory_out_of_reach(way):
    before, after = way
    with tempfile.TemporaryDirectory() as folder:  # folders of pytest are for their owner only
        os.chmod(folder, 0o755)
        expect_alive(NEW.format(before=before, after=after), folder)
