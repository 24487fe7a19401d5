"""Files that overlayfs copies up while they are open: the mapping stays on the lower layer."""

from __future__ import annotations

import subprocess

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.disks import must
from tests.support.internals import core_of

pytestmark = pytest.mark.anyio

PAGES = 64


@pytest.fixture
def merged(tmp_path):
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for folder in (lower, upper, work, merged):
        folder.mkdir()
    (lower / "file").write_bytes(b"o" * PAGES * PAGE)
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    must("mount", "-t", "overlay", "overlay", "-o", layers, merged)
    yield merged
    must("umount", "--lazy", merged)


def copy_up(path, command="dd of=$0 bs=4096 count=32 conv=notrunc status=none"):
    """Store "N" into the first half of the file, or run another command, in another process."""
    script = f"head -c 1000000 /dev/zero | tr '\\0' N | {command}"
    subprocess.run(["sh", "-c", script, str(path)], check=True)


APPEND = "head -c 4096 >> $0"


async def test_reads_see_the_copy(merged):
    """Neither small nor large reads, nor reads of locked pages, return the lower layer's bytes."""
    path = merged / "file"
    async with aiommap.open(path) as f:
        await f.prewarm()
        async with f.locked():
            assert await f.read(0, 3) == b"ooo"
            copy_up(path)
            for length in (3, 3 * PAGE, 16 * PAGE):
                assert await f.read(0, length) == b"N" * length
                into = bytearray(length)
                assert await f.read_into(0, into) == length
                assert into == b"N" * length
        assert await f.read(0, PAGE) == b"N" * PAGE
        assert b"".join([bytes(c) async for c in f.chunks(16 * PAGE)]) == path.read_bytes()


async def test_mapping_verbs_tell_of_the_copy(merged):
    path = merged / "file"
    async with aiommap.open(path) as f:
        before = f.view()
        copy_up(path)
        for verb in (f.prewarm, f.residency, f.locked().__aenter__):
            with pytest.raises(aiommap.UnsupportedError, match=r"copied it up.*call reopen"):
                await verb()
        with pytest.raises(aiommap.UnsupportedError, match="copied it up"):
            f.view(0, 3)
        with pytest.raises(aiommap.UnsupportedError, match="copied it up"):
            before.memory  # noqa: B018
        assert not f.statistics().poisoned


async def test_reopen_maps_the_copy(merged):
    path = merged / "file"
    async with aiommap.open(path) as f:
        old = f.view(0, 3)
        memory = old.memory
        copy_up(path)
        await f.reopen()
        assert bytes(f.view(0, 3).memory) == b"NNN"
        assert bytes(memory) == b"ooo"  # I7
        async with f.locked():
            assert await f.read(0, 3) == b"NNN"
        core = core_of(f)
        await f.reopen()
        assert core_of(f) is core


async def test_refresh_maps_the_copy(merged):
    path = merged / "file"
    async with aiommap.open(path, capacity=1 << 20) as f:
        copy_up(path, APPEND)
        await f.refresh()
        assert f.size == (PAGES + 1) * PAGE
        assert bytes(f.view(PAGES * PAGE, 3).memory) == b"NNN"
        assert await f.read(PAGES * PAGE, 3) == b"NNN"
        copy_up(path, APPEND)
        await f.refresh()
        assert await f.read((PAGES + 1) * PAGE, 3) == b"NNN"
        assert not f.statistics().poisoned


async def test_refresh_follows_no_other_file(merged):
    path = merged / "file"
    async with aiommap.open(path) as f:
        copy_up(path)
        path.rename(merged / "moved")
        path.write_bytes(b"another")
        with pytest.raises(aiommap.UnsupportedError, match="copied it up"):
            await f.refresh()
        assert await f.read(0, 3) == b"NNN"


async def test_private_file_tells_of_the_copy(merged):
    path = merged / "file"
    async with aiommap.open(path, "c") as f:
        await f.write(0, b"private")
        copy_up(path)
        with pytest.raises(aiommap.UnsupportedError, match="copied it up"):
            await f.read(0, 16 * PAGE)
        await f.reopen(discard=True)
        assert await f.read(0, 3) == b"NNN"


async def test_upper_layer_file_is_mapped_as_is(merged):
    path = merged / "file"
    copy_up(path)
    async with aiommap.open(path) as f:
        path.chmod(0o600)
        copy_up(path)
        assert bytes(f.view(0, 3).memory) == b"NNN"
        core = core_of(f)
        await f.reopen()
        assert core_of(f) is core
