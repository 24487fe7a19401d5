"""A cache whose folder has damage, blocks of another boot, files of other people, or no room."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import struct
from contextlib import suppress

import anyio
import pytest

from aiommap import UnsupportedError
from aiommap.remote import RemoteCache
from tests.support.disks import disk_with, must
from tests.support.internals import Header, comparing, crc32c
from tests.support.objects import BLOCK, DATA, Objects
from tests.support.remote import content

pytestmark = pytest.mark.anyio


async def fill(make_cache, objects, **options):
    """Cache a whole object, and close the cache."""
    async with make_cache(**options) as cache, cache.open(objects, prewarm=True):
        pass
    objects.gets.clear()


def files_of(tmp_path):
    return [next((tmp_path / "cache").glob(f"*.{kind}")) for kind in ("data", "map")]


def change_header(tmp_path, **fields):
    path = files_of(tmp_path)[1]
    with path.open("r+b") as file:
        header = Header.unpack(file.read(4096), crc32c)
        for name, value in fields.items():
            setattr(header, name, value)
        file.seek(0)
        file.write(header.pack(crc32c))


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def fill_up(folder):
    """Fill the disk of a folder."""
    with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(BLOCK))


async def read_all(make_cache, objects, **options):
    """Read and compare the whole object twice; return the statistics of the cache."""
    async with make_cache(**options) as cache, cache.open(objects) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        assert await s.read_exact(0, len(DATA)) == DATA
        return cache.statistics()


async def test_folder_is_for_its_user_alone(make_cache, objects, tmp_path):
    await fill(make_cache, objects)
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


async def test_folder_is_made_with_its_parents(make_cache, objects, tmp_path):
    async with make_cache(folder=tmp_path / "a" / "b") as cache, cache.open(objects) as s:
        assert await s.read_exact(0, 10) == DATA[:10]
        assert cache.statistics().errors == 0
    assert [*(tmp_path / "a" / "b").glob("*.data")]


async def test_folder_with_other_files_is_refused(make_cache, objects, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis").write_text("precious")
    async with make_cache() as cache:
        with pytest.raises(UnsupportedError, match="other files"):
            await cache.open(objects)
        with pytest.raises(UnsupportedError, match="other files"):
            await cache.clear()
    assert (tmp_path / "cache" / "thesis").read_text() == "precious"


async def test_folder_that_lost_its_marker_is_ours_again(make_cache, objects, tmp_path):
    """A power cut may take the marker; without this rule the folder would be refused for good."""
    await fill(make_cache, objects)
    (tmp_path / "cache" / "aiommap-cache").unlink()
    found = await read_all(make_cache, objects)
    assert found.gets == 0
    assert (tmp_path / "cache" / "aiommap-cache").exists()


async def test_marker_that_comes_while_one_looks_at_the_folder(
    make_cache, objects, monkeypatch, tmp_path
):
    """Another process makes it between our look for it and our look at what else there is."""
    await fill(make_cache, objects)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "lexists", lambda _: False)
        assert (await read_all(make_cache, objects)).gets == 0
        (tmp_path / "cache" / "thesis").write_text("precious")
        async with make_cache() as cache:
            with pytest.raises(UnsupportedError, match="other files"):
                await cache.open(objects)


@pytest.mark.parametrize("name", ["state", "thesis.data", "folder", "link"])
async def test_folder_without_a_marker_that_has_one_other_file_is_refused(
    make_cache, objects, tmp_path, name
):
    await fill(make_cache, objects)
    folder = tmp_path / "cache"
    (folder / "aiommap-cache").unlink()
    ours = files_of(tmp_path)[0].with_stem("ab" * 32)
    if name == "link":
        ours.symlink_to(tmp_path)
    elif name == "folder":
        ours.mkdir()
    else:
        (folder / name).write_text("precious")
    async with make_cache() as cache:
        with pytest.raises(UnsupportedError, match="other files"):
            await cache.open(objects)


async def test_folder_that_all_may_write_is_refused(make_cache, objects, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    async with make_cache() as cache:
        with pytest.raises(UnsupportedError, match="chmod"):
            await cache.open(objects)


async def test_clear_leaves_files_that_are_not_ours(make_cache, objects, tmp_path):
    await fill(make_cache, objects)
    strange = files_of(tmp_path)[0].with_name("notes.data")
    strange.write_text("mine")
    async with make_cache() as cache:
        await cache.clear()
    assert strange.read_text() == "mine"


async def test_blocks_of_another_boot_are_verified(make_cache, objects, tmp_path):
    await fill(make_cache, objects)
    change_header(tmp_path, boot=bytes(16))
    found = await read_all(make_cache, objects)
    assert (found.gets, found.verified_blocks, found.bad_blocks) == (0, 11, 0)
    found = await read_all(make_cache, objects)  # the header is of this boot again
    assert (found.gets, found.verified_blocks) == (0, 0)


async def test_blocks_of_another_boot_are_cached(make_cache, objects, tmp_path):
    await fill(make_cache, objects)
    change_header(tmp_path, boot=bytes(16))
    async with make_cache() as cache, cache.open(objects) as s:
        assert (await s.residency()).cached == len(DATA)
        assert (cache.statistics().gets, cache.statistics().verified_blocks) == (0, 0)


async def test_flipped_bit_of_another_boot_is_fetched_anew(make_cache, objects, tmp_path):
    await fill(make_cache, objects)
    change_header(tmp_path, boot=bytes(16))
    flip(files_of(tmp_path)[0], 3 * BLOCK + 7)
    found = await read_all(make_cache, objects)
    assert (found.gets, found.verified_blocks, found.bad_blocks) == (1, 10, 1)
    assert objects.gets == [(3 * BLOCK, 4 * BLOCK)]


async def test_hole_of_another_boot_is_fetched_anew(make_cache, objects, tmp_path):
    """After a power cut the words may be on the disk, and the bytes not."""
    await fill(make_cache, objects)
    change_header(tmp_path, boot=bytes(16))
    data = files_of(tmp_path)[0]
    with data.open("r+b") as file:
        file.truncate(4 * BLOCK)
        file.truncate(len(DATA))
    found = await read_all(make_cache, objects)
    assert (found.verified_blocks, found.bad_blocks) == (4, 7)


def punch(path):
    must("fallocate", "--punch-hole", "--offset", 4 * BLOCK, "--length", 3 * BLOCK, path)


def regrow(path):
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


@pytest.mark.parametrize("damage", [punch, regrow])
async def test_holes_of_this_boot_are_fetched_anew(make_cache, objects, tmp_path, damage):
    await fill(make_cache, objects)
    damage(files_of(tmp_path)[0])
    async with make_cache() as cache, cache.open(objects) as s:
        assert await s.read_exact(0, len(DATA)) == DATA
        assert cache.statistics().bad_blocks == {punch: 3, regrow: 11}[damage]


async def test_blocks_of_this_boot_are_not_verified(make_cache, objects):
    """Not even of an object that is cached in part, and ends with a partial block."""
    async with make_cache() as cache, cache.open(objects) as s:
        await s.read_many([(BLOCK, 1), (10 * BLOCK, 1)])
    async with make_cache() as cache, cache.open(objects) as s:
        await s.read_many([(BLOCK, 1), (10 * BLOCK, 1)])
        assert cache.statistics().verified_blocks == 0


async def test_copied_files_are_verified(make_cache, objects, tmp_path):
    await fill(make_cache, objects)
    data = files_of(tmp_path)[0]
    shutil.copy(data, tmp_path / "copy")
    (tmp_path / "copy").replace(data)
    found = await read_all(make_cache, objects)
    assert (found.gets, found.verified_blocks) == (0, 11)


async def test_swapped_data_is_found_out(make_cache, tmp_path):
    """The checksums refuse the blocks of another object of the same length."""
    one, two = Objects(DATA, url="test://h/1"), Objects(bytes(len(DATA)), url="test://h/2")
    for objects in (one, two):
        await fill(make_cache, objects)
    first, second = (tmp_path / "cache").glob("*.data")
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    found = await read_all(make_cache, one)
    assert (found.verified_blocks, found.bad_blocks) == (0, 11)


@pytest.mark.parametrize("which", [0, 1], ids=["data", "map"])
@pytest.mark.parametrize("length", [0, 100, BLOCK, BLOCK + 10])
async def test_truncated_files_are_made_anew(make_cache, objects, tmp_path, which, length):
    await fill(make_cache, objects)
    os.truncate(files_of(tmp_path)[which], length)
    found = await read_all(make_cache, objects)
    assert (found.fetched_bytes, found.errors) == (len(DATA), 0)


@pytest.mark.parametrize("at", [0, 8, 30, 100, 4095])
async def test_damaged_header_is_made_anew(make_cache, objects, tmp_path, at):
    await fill(make_cache, objects)
    flip(files_of(tmp_path)[1], at)
    found = await read_all(make_cache, objects)
    assert (found.fetched_bytes, found.errors) == (len(DATA), 0)


@pytest.mark.parametrize("which", [0, 1], ids=["data", "map"])
async def test_one_file_without_the_other_is_made_anew(make_cache, objects, tmp_path, which):
    await fill(make_cache, objects)
    files_of(tmp_path)[which].unlink()
    found = await read_all(make_cache, objects)
    assert found.fetched_bytes == len(DATA)


async def test_damaged_state_is_counted_anew(make_cache, objects, tmp_path):
    await fill(make_cache, objects)
    (tmp_path / "cache" / "aiommap-cache").write_bytes(b"\xff" * 5000)
    found = await read_all(make_cache, objects)
    assert found.gets == 0
    assert len(DATA) <= found.used_bytes <= len(DATA) + 8 * BLOCK


async def test_verify_finds_a_flipped_bit(make_cache, objects, tmp_path):
    async with make_cache() as cache, cache.open(objects, prewarm=True) as s:
        flip(files_of(tmp_path)[0], 5)
        report = await cache.verify()
        assert (report.objects, report.blocks, report.bad_blocks) == (1, 11, 1)
        assert report.bytes == len(DATA)
        assert await s.read_exact(0, 16) == DATA[:16]
        assert cache.statistics().bad_blocks == 1


@pytest.mark.parametrize("alone", [False, True], ids=["threads", "one thread"])
async def test_verify_in_threads_compares_each_block_once(make_cache, monkeypatch, tmp_path, alone):
    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    if alone:
        monkeypatch.setattr(comparing, "run_in_thread", no_thread)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    objects = Objects(content(1, size=700 * BLOCK - 9))
    async with make_cache() as cache, cache.open(objects, prewarm=True):
        for block in (0, 15, 16, 699):
            flip(files_of(tmp_path)[0], block * BLOCK)
        report = await cache.verify()
        assert (report.blocks, report.bad_blocks) == (700, 4)
        assert report.bytes == len(objects.data)
        report = await cache.verify()
        assert (report.blocks, report.bad_blocks) == (696, 0)
        assert report.bytes == len(objects.data) - 4 * BLOCK + 9


async def test_cut_off_data_in_use_is_never_read_as_zeros(make_cache, objects, tmp_path):
    errors = []
    async with make_cache(on_error=errors.append) as cache, cache.open(objects) as s:
        await s.prewarm(0, 5 * BLOCK)
        os.truncate(files_of(tmp_path)[0], BLOCK)
        assert await s.read_exact(0, 9) == DATA[:9]
        assert await s.read_exact(3 * BLOCK, 9) == DATA[3 * BLOCK :][:9]
        assert await s.read_exact(10 * BLOCK, 9) == DATA[10 * BLOCK :][:9]
        assert await s.read_exact(0, len(DATA)) == DATA
        assert files_of(tmp_path)[0].stat().st_size == BLOCK
    assert errors


async def test_cut_off_words_in_use_are_a_miss(make_cache, objects, tmp_path):
    async with make_cache() as cache, cache.open(objects) as s:
        await s.prewarm()
        os.truncate(files_of(tmp_path)[1], 0)
        assert await s.read_exact(0, 9) == DATA[:9]
        assert await s.read_exact(0, len(DATA)) == DATA


async def test_deleted_folder_in_use_is_made_anew(make_cache, objects, tmp_path):
    async with make_cache() as cache:
        async with cache.open(objects) as s:
            await s.prewarm(0, 5 * BLOCK)
            shutil.rmtree(tmp_path / "cache")
            assert await s.read_exact(0, len(DATA)) == DATA
            async with cache.open(objects) as again:
                assert await again.read_exact(0, len(DATA)) == DATA
        async with cache.open(Objects(DATA, url="test://h/other"), prewarm=True):
            assert len(await cache.entries()) == 1
    assert (tmp_path / "cache" / "aiommap-cache").exists()


@pytest.mark.parametrize("fault", ["full_tmpfs", "full_ext4"])
async def test_full_disk_is_a_miss(objects, tmp_path, fault):
    errors = []
    with disk_with(fault, tmp_path) as folder:
        cache = RemoteCache(
            folder / "cache", block_size=BLOCK, min_free=0.0, on_error=errors.append
        )
        async with cache, cache.open(objects) as s:
            await s.read_exact(0, 9)
            fill_up(folder)
            assert await s.read_exact(0, len(DATA)) == DATA
            assert await s.read_exact(0, len(DATA)) == DATA
            other = Objects(DATA, url="test://h/other")
            async with cache.open(other) as t:
                assert await t.read_exact(0, len(DATA)) == DATA


async def test_share_of_the_disk_stays_free(objects, tmp_path):
    with disk_with("full_tmpfs", tmp_path) as folder:
        cache = RemoteCache(folder / "cache", block_size=BLOCK, min_free=0.97)
        async with cache, cache.open(objects) as s:
            assert await s.read_exact(0, len(DATA)) == DATA
            found = os.statvfs(folder)
            assert found.f_bavail >= 0.97 * found.f_blocks
            assert cache.statistics().unstored_blocks > 0


async def test_read_only_folder_is_a_miss(make_cache, objects, tmp_path):
    errors = []
    await fill(make_cache, objects)
    folder = tmp_path / "read_only"
    folder.mkdir()
    must("mount", "--bind", tmp_path / "cache", folder)
    try:
        must("mount", "-o", "remount,ro,bind", folder)
        cache = make_cache(folder=folder, on_error=errors.append)
        async with cache, cache.open(objects) as s:
            assert await s.read_exact(0, len(DATA)) == DATA
            await anyio.lowlevel.checkpoint()
        assert errors
    finally:
        must("umount", folder)


async def test_no_secret_is_kept(make_cache, tmp_path):
    objects = Objects(DATA, url="test://h/key")
    await fill(make_cache, objects)
    async with make_cache() as cache:
        url = f"file://{tmp_path}/object?token=hunter2"
        (tmp_path / "object").write_bytes(DATA)
        async with cache.open(url, prewarm=True) as s:
            assert "hunter2" not in f"{s!r} {s.url} {cache!r} {await cache.entries()}"
    for path in (tmp_path / "cache").rglob("*"):
        assert "hunter2" not in str(path)
        if path.is_file():
            assert b"hunter2" not in path.read_bytes()


async def test_process_that_keeps_the_lock_is_not_waited_for(make_cache, objects, tmp_path):
    """A stopped process keeps the lock: whatever needs the lock is a miss."""
    errors = []
    async with make_cache(on_error=errors.append) as cache, cache.open(objects) as s:
        await s.read_exact(0, 9)
        lock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        with (tmp_path / "cache" / "aiommap-cache").open("r+b") as state:
            fcntl.fcntl(state, fcntl.F_OFD_SETLK, lock)
            assert await s.read_exact(0, len(DATA)) == DATA
            async with cache.open(Objects(DATA, url="test://h/other")) as other:
                assert await other.read_exact(0, 9) == DATA[:9]
            assert cache.statistics().unstored_blocks > 0
        assert errors
