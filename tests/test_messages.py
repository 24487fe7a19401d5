"""What is refused says what was asked, what was found and what to do; and is not accepted."""

from __future__ import annotations

import os
import re

import anyio
import pytest

import aiommap
from aiommap import FlushPolicy
from aiommap.opentelemetry import instrument
from aiommap.testing import failing_flush, slow_disk
from conftest import PAGE

#: A call with an open file, the error, and what its message has to hold.
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
    "every-interval": (lambda _: FlushPolicy.every_interval("1s"), TypeError, "interval got '1s'"),
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
async def test_a_mistake_is_named(path, use, error, words):
    async with aiommap.open(path, "r+") as f:
        with pytest.raises(error, match=re.escape(words)):
            await finish(use(f))


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["resize", "ensure", "punch_hole"])
async def test_what_private_files_refuse_is_not_recommended(path, verb):
    arguments = (0, PAGE) if verb == "punch_hole" else (PAGE,)
    async with aiommap.open(path) as f:
        with pytest.raises(aiommap.AccessModeError) as caught:
            await getattr(f, verb)(*arguments)
    assert caught.value.remedy == 'open it with "r+"'


@pytest.mark.anyio
async def test_a_closed_file_is_not_entered_again(path):
    async with aiommap.open(path) as f:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        async with f:
            pytest.fail("it was entered")


@pytest.mark.anyio
async def test_what_there_is_no_address_space_for_says_how_much_that_was(path):
    with pytest.raises(OSError, match=f"{1 << 47} bytes of address space"):
        await aiommap.open(path, "r+", capacity=1 << 47)


@pytest.mark.anyio
async def test_what_the_disk_has_no_room_for_says_how_much_that_was(tmp_path):
    found = os.statvfs(tmp_path)
    size = (found.f_blocks * found.f_frsize + (1 << 30)) // PAGE * PAGE
    with pytest.raises(OSError, match=rf"for the {size} bytes .*sparse=True"):
        await aiommap.open(tmp_path / "new", "x+", size=size)
    assert not (tmp_path / "new").exists()
