"""``find`` and ``rfind`` compared with those of ``bytes``, on files, views and snapshots."""

from __future__ import annotations

import os
import random

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import MappingFaultError, Snapshot
from tests.support.internals import core_of, native, searching

pytestmark = pytest.mark.anyio

ends = st.one_of(st.none(), st.integers(-12, 12), st.sampled_from([-(2**70), 2**70]))


@given(st.binary(max_size=9), st.binary(max_size=3), ends, ends)
def test_bounds_are_those_of_bytes(data, needle, start, end):
    low, high = searching.bounds(start, end, len(data))
    for find, last in ((data.find, False), (data.rfind, True)):
        expected = find(needle, start, end)
        found = -1
        if low <= high and not needle:
            found = high if last else low
        elif low <= high:
            inside = native.find_bytes(data[low:high], needle, last)
            found = inside if inside < 0 else low + inside
        assert found == expected


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"aab"]), max_size=60),
    st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=6),
    st.integers(1, 8),
    st.booleans(),
)
def test_pieces_have_every_match(parts, needle, size, last):
    data, wanted = b"".join(parts), b"".join(needle)
    found = -1
    for low, high in searching._pieces(0, len(data), len(wanted), size, backwards=last):
        found = native.find_bytes(data[low:high], wanted, last)
        if found >= 0:
            found += low
            break
    assert found == (data.rfind(wanted) if last else data.find(wanted))


#: Only two letters, so that many places almost match.
LETTERS = random.Random(7).randbytes((3 << 20) + 100).translate(b"ab" * 128)


@pytest.fixture
def words(tmp_path):
    """A file of three pieces and a bit, with a marker across two pieces."""
    data = bytearray(LETTERS)
    data[(1 << 20) - 2 : (1 << 20) + 3] = b"xyzzy"
    data[(2 << 20) + 5 : (2 << 20) + 10] = b"xyzzy"
    path = tmp_path / "words"
    path.write_bytes(data)
    return path, bytes(data)


NEEDLES = [b"xyzzy", b"", b"abababababab", b"none", ord("z")]
ENDS = [(0, None), (5, -5), (-50, None), (None, 1 << 20), (9, 3), (1 << 30, None)]


@pytest.mark.parametrize("kind", ["file", "private", "view", "snapshot"])
async def test_find_answers_as_bytes_do(words, kind):
    path, data = words
    mode = "c" if kind == "private" else "r+"
    async with aiommap.open(path, mode) as f, Snapshot.open(path) as snapshot:
        thing = {"view": None, "snapshot": snapshot}.get(kind, f)
        if kind == "private":
            await f.write(100, b"xyzzy")
            data = data[:100] + b"xyzzy" + data[105:]
        if kind == "view":
            thing, data = f.view(77, 2 << 20), data[77 : 77 + (2 << 20)]
        for needle in NEEDLES:
            for start, end in ENDS:
                found = await thing.find(needle, start, end)
                assert found == data.find(needle, start, end), (needle, start, end)
                found = await thing.rfind(needle, start, end)
                assert found == data.rfind(needle, start, end), (needle, start, end)
        assert await thing.find(memoryview(b"xyzzy")) == data.find(b"xyzzy")
        large = data[5 : (1 << 20) + 300_000]
        assert (await thing.find(large), await thing.rfind(bytearray(large))) == (5, 5)
        assert await thing.find(data + b"x") == -1


async def test_find_inline_where_it_is_short(path):
    async with aiommap.open(path) as f:
        await f.prewarm()
        before = f.statistics()
        assert await f.find(b"B") == PAGE
        assert await f.rfind(b"AB", 0, 2 * PAGE) == PAGE - 1
        after = f.statistics()
        assert after.inline_reads - before.inline_reads == 2
        assert after.offloaded_reads == before.offloaded_reads


async def test_find_cold_leaves_the_loop(path):
    """A worker reads if the inline read declines, as for data that is not in memory (I1)."""
    async with aiommap.open(path) as f:
        core_of(f).mapping.declining = True
        assert await f.find(b"CCB") == -1
        assert await f.find(b"C") == 2 * PAGE


async def test_find_refuses_what_is_no_needle(path):
    async with aiommap.open(path) as f:
        with pytest.raises(ValueError, match="256"):
            await f.find(256)
        with pytest.raises(TypeError):
            await f.find("text")
        with pytest.raises(TypeError):
            await f.find(b"A", "0")
    with pytest.raises(anyio.ClosedResourceError):
        await f.find(b"A")


async def test_find_in_truncated_file(path, outside):
    async with aiommap.open(path) as f:
        outside(path, 0)
        with pytest.raises(MappingFaultError):
            await f.find(b"nowhere")
        assert await f.find(b"", 5) == 5


async def test_find_of_worst_case_takes_linear_time(tmp_path):
    """Each place almost matches, so a search that begins again at each would take hours."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * (3 << 20))
    async with aiommap.open(path) as f:
        needle = b"a" * (1 << 19) + b"b" + b"a" * (1 << 19)
        with anyio.fail_after(100):
            assert await f.find(needle) == await f.rfind(needle) == -1


async def test_find_follows_the_size(path):
    async with aiommap.open(path, "a+") as f:
        assert await f.find(b"end") == -1
        receipt = await f.append(b"the end")
        assert await f.find(b"end") == receipt.offset + 4
        await f.flush()
        os.truncate(path, PAGE)
        await f.refresh()
        assert await f.find(b"B") == -1
