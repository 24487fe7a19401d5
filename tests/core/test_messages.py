"""Error messages say what was asked, what was found and what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import subprocess
import sys

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from aiommap.opentelemetry import instrument
from aiommap.testing import failing_flush, slow_disk
from tests.support.internals import opening
from tests.support.sanitizers import without_asan

#: Linux 5.1; the module fcntl has no name for it.
F_SEAL_FUTURE_WRITE = 0x0010

#: A call with an open file, the error, and a part of its message.
MISTAKES = {
    "slow-disk": (lambda f: slow_disk(f, only="reads"), ValueError, "only is 'reads'"),
    "slow-disk-list": (lambda f: slow_disk(f, only=["read"]), ValueError, "only is ['read']"),
    "failing-flush": (lambda f: failing_flush(f, "EIO"), ValueError, "number is 'EIO'"),
    "fault-in-path": (lambda f: failing_flush(f.path), TypeError, "give an open file"),
    "mapped-file": (lambda f: aiommap.MappedFile(f.path), TypeError, "use aiommap.open("),
    "size": (lambda f: aiommap.open(f.path, "w+", size="1M"), TypeError, "size is '1M'"),
    "size-float": (lambda f: aiommap.open(f.path, "w+", size=1e6), TypeError, "size is 1000000.0"),
    "prewarm": (lambda f: aiommap.open(f.path, prewarm="yes"), TypeError, "prewarm is 'yes'"),
    "length": (lambda f: f.read(0, None), TypeError, "length is None"),
    "offset": (lambda f: f.write("1", b""), TypeError, "offset is '1'"),
    "text": (lambda f: f.write(0, "hello"), TypeError, "data is 'hello'"),
    "view": (lambda f: f.view(f.size + 1), aiommap.OutOfBoundsError, f"from {PAGE * 16 + 1} on"),
    "every-bytes": (lambda _: FlushPolicy.every_bytes(1.5), TypeError, "every_bytes got 1.5"),
    "every-interval": (lambda _: FlushPolicy.every_interval("1"), TypeError, "interval got '1'"),
    "flush-policy": (
        lambda f: setattr(f, "flush_policy", "always"),
        TypeError,
        "flush_policy is 'always'",
    ),
    "workers": (lambda _: aiommap.Hub(workers=1.5), TypeError, "workers is 1.5"),
    "instrument": (lambda _: instrument(0.01), TypeError, "threshold=0.01"),
}


async def finish(result):
    if hasattr(result, "__enter__"):
        result.__enter__()
    elif hasattr(result, "__await__"):
        await result


@pytest.mark.anyio
@pytest.mark.parametrize(("use", "error", "words"), MISTAKES.values(), ids=MISTAKES)
async def test_mistake_is_named(path, use, error, words):
    async with aiommap.open(path, "r+") as f:
        with pytest.raises(error, match=re.escape(words)):
            await finish(use(f))


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["resize", "ensure", "punch_hole"])
async def test_private_refusals_do_not_advise_more(path, verb):
    arguments = (0, PAGE) if verb == "punch_hole" else (PAGE,)
    async with aiommap.open(path) as f:
        with pytest.raises(aiommap.AccessModeError) as caught:
            await getattr(f, verb)(*arguments)
    assert caught.value.remedy == 'open it with "r+"'


@pytest.mark.anyio
async def test_closed_file_is_not_entered_again(path):
    async with aiommap.open(path) as f:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        async with f:
            pytest.fail("it was entered")


@pytest.mark.anyio
async def test_no_address_space_tells_how_much(path):
    with pytest.raises(OSError, match=f"{1 << 47} bytes of address space"):
        await aiommap.open(path, "r+", capacity=1 << 47)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["x+", "w+"])
async def test_no_disk_space_tells_how_much(tmp_path, monkeypatch, mode):
    """Opening checks that first: reserving would take the rest of the disk from everybody else."""
    monkeypatch.setattr(os, "posix_fallocate", None)
    found = os.statvfs(tmp_path)
    size = (found.f_blocks * found.f_frsize + (1 << 30)) // PAGE * PAGE
    with pytest.raises(OSError, match=rf"for the {size} bytes .*sparse=True"):
        await aiommap.open(tmp_path / "new", mode, size=size)
    assert not (tmp_path / "new").exists()


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["r", "c", "r+"])
async def test_read_beyond_the_end_advises_what_works(path, mode):
    """It advises resize() only for a file that is open for writing."""
    async with aiommap.open(path, mode) as f:
        end = f.size
        calls = [
            lambda: f.read(end, 1),
            lambda: f.read_into(end, bytearray(1)),
            lambda: f.read_many([(end, 1)]),
        ]
        if mode != "r":
            calls.append(lambda: f.write(end, b"x"))
        for call in calls:
            with pytest.raises(aiommap.OutOfBoundsError, match="ask for less") as caught:
                await call()
            assert ("resize()" in str(caught.value)) is (mode == "r+")
            assert (caught.value.offset, caught.value.limit) == (end, end)
        for call in (lambda: f.read_nowait(end, 1), lambda: f.view(end + 1)):
            with pytest.raises(aiommap.OutOfBoundsError) as caught:
                call()
            assert ("resize()" in str(caught.value)) is (mode == "r+")


@pytest.mark.anyio
async def test_punch_hole_of_a_sealed_file_names_it():
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        os.truncate(fd, 1 << 16)
        path = f"/proc/{os.getpid()}/fd/{fd}"
        async with aiommap.open(path, "r+") as f:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
            with pytest.raises(PermissionError) as caught:
                await f.punch_hole(0, 1 << 16)
            assert caught.value.filename == path
    finally:
        os.close(fd)


@without_asan
@pytest.mark.anyio
async def test_private_mapping_under_overcommit(path, monkeypatch):
    """The test only pretends strict overcommit: the setting is for all processes of the machine."""
    monkeypatch.setattr(opening, "_counts_private_pages", lambda: True)
    with open(path, "ab") as file:
        file.truncate(1 << 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 39, hard))
    try:
        with pytest.raises(OSError, match=r"vm\.overcommit_memory is 2") as caught:
            await aiommap.open(path, "c")
        with pytest.raises(OSError, match="address space"):
            await aiommap.open(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOMEM, str(path))


ADVISE_AT_THE_LIMIT = """
import asyncio, mmap, sys, aiommap

async def main():
    taken = []
    async with aiommap.open(sys.argv[1]) as f:
        await f.read(0, 1)
        try:
            while True:
                if len(taken) % 1000 == 0:  # keep a worker: later none could be started
                    await f.advise(aiommap.Advice.NORMAL, 0, aiommap.PAGE_SIZE)
                # Two kinds in turn, so that the kernel cannot merge them.
                taken.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ))
                taken.append(mmap.mmap(-1, 4096))
        except (OSError, MemoryError):
            pass
        try:
            await f.advise(aiommap.Advice.RANDOM, aiommap.PAGE_SIZE, aiommap.PAGE_SIZE)
        except aiommap.UnsupportedError as error:
            print(error)
        for mapping in taken:
            mapping.close()

asyncio.run(main())
"""


@pytest.mark.slow
@without_asan
def test_advise_at_the_limit_of_mappings(path):
    with open("/proc/sys/vm/max_map_count") as file:
        if int(file.read()) > 1 << 18:
            pytest.skip("vm.max_map_count is out of reach")
    done = subprocess.run(
        [sys.executable, "-c", ADVISE_AT_THE_LIMIT, path], capture_output=True, text=True
    )
    assert done.stdout.startswith(f"cannot advise RANDOM of {path}: "), done.stderr
    assert "vm.max_map_count" in done.stdout
