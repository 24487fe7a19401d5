"""The Whisper example against the package ``whisper``: the same calls, the same bytes."""

from __future__ import annotations

import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiommap
from tests.support.example_scripts import EXAMPLES, load

whisper = pytest.importorskip("whisper")
pytestmark = pytest.mark.anyio
SCRIPT = EXAMPLES / "whisper_store.py"
NOW = 1_700_000_123
ARCHIVES = [(60, 10), (300, 7), (1800, 4)]
METHODS = sorted(whisper.aggregationMethods)


example = load(SCRIPT)
WhisperStore, WhisperError = example.WhisperStore, example.WhisperError


class Pair:
    """One file of ours and one of the package, which get the same calls."""

    def __init__(self, folder, archives=ARCHIVES, factor=0.5, method="average"):
        self.ours, self.theirs = str(folder / "ours.wsp"), str(folder / "theirs.wsp")
        self.configuration = archives, factor, method

    async def create(self):
        archives, factor, method = self.configuration
        await example.create(self.ours, archives, factor, method)
        whisper.create(self.theirs, list(archives), factor, method)
        self.check()

    def check(self):
        assert Path(self.ours).read_bytes() == Path(self.theirs).read_bytes()

    async def update(self, store, value, timestamp, now=NOW):
        try:
            whisper.update(self.theirs, value, timestamp, now)
        except whisper.TimestampNotCovered:
            with pytest.raises(WhisperError, match="s ago"):
                await store.update(value, timestamp, now)
        else:
            await store.update(value, timestamp, now)
        self.check()

    async def update_many(self, store, points, now=NOW):
        whisper.update_many(self.theirs, list(points), now)
        await store.update_many(points, now)
        self.check()

    async def fetch(self, store, start, end=None, now=NOW, step=None):
        """Fetch from both files, each with the other implementation."""
        found = whisper.fetch(self.ours, start, end, now, step)
        mine = await store.fetch(start, end, now, step)
        if found is None:
            assert mine is None
            return
        (low, high, width), values = found
        assert mine[:3] == (low, high, width)
        assert repr(mine.values) == repr(values)  # as text, because NaN is not equal to itself


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


async def test_methods_and_factors_give_same_bytes(tmp_path, method):
    for number, factor in enumerate([0, 0.1, 0.3, 0.5, 1]):
        folder = tmp_path / str(number)
        folder.mkdir()
        pair = Pair(folder, factor=factor, method=method)
        await pair.create()
        async with WhisperStore.open(pair.ours) as store:
            assert (store.method, store.longest_retention) == (method, 7200)
            assert store.x_files_factor == whisper.info(pair.theirs)["xFilesFactor"]
            for age in (540, 400, 380, 130, 61, 60, 1, 0, 7199, 2000):
                await pair.update(store, (age % 7 - 3) / 10, NOW - age)
            many = [(NOW - 17 * i, (i % 11 - 5) * 1.1) for i in range(500)]
            await pair.update_many(store, many)
            await pair.fetch(store, NOW - 7200)
            await pair.fetch(store, NOW - 500)
        async with WhisperStore.open(pair.theirs, "r") as store:
            await pair.fetch(store, NOW - 7200)


VALUES = st.floats(width=64) | st.sampled_from([0.0, -0.0, math.nan, math.inf, 1.0, -1.0])
CONFIGURATIONS = st.sampled_from(
    [
        ARCHIVES,
        [(1, 5)],
        [(1, 60), (60, 60)],
        [(10, 6), (60, 5), (300, 3)],
        [(60, 5), (300, 2), (600, 3), (1200, 90)],
    ]
)


def moments(longest):
    """Draw times near now, near the ends of archives, and anywhere in between."""
    edges = [0, 1, 59, 60, 61, 299, 300, 599, 600, 601, longest - 1, longest, longest + 1]
    return (st.integers(-5, longest + 70) | st.sampled_from(edges)).map(lambda age: NOW - age)


@st.composite
def histories(draw):
    """Draw a list of archives, a factor, a method, and the calls."""
    archives = draw(CONFIGURATIONS)
    longest = archives[-1][0] * archives[-1][1]
    at = moments(longest)
    # The package writes behind the end of an archive if points in the future fill a lap.
    past = at.map(lambda moment: min(moment, NOW))
    later = st.sampled_from([0, 0, 1, 60, 299, 5000, 100_000])
    steps = st.lists(
        st.one_of(
            st.tuples(st.just("update"), VALUES, at, later),
            st.tuples(
                st.just("update_many"), st.lists(st.tuples(past, VALUES), max_size=40), later
            ),
            st.tuples(st.just("fetch"), at, at, later),
            st.tuples(st.just("select"), at, at, st.sampled_from([step for step, _ in archives])),
        ),
        max_size=12,
    )
    factor = draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    return archives, factor, draw(st.sampled_from(METHODS)), draw(steps)


async def replay(folder, history):
    archives, factor, method, steps = history
    pair = Pair(folder, archives, factor, method)
    now = NOW
    await pair.create()
    async with WhisperStore.open(pair.ours) as store:
        for kind, *arguments in steps:
            moved = now - NOW
            if kind == "update":
                value, at, later = arguments
                await pair.update(store, value, at + moved, now)
            elif kind == "update_many":
                points, later = arguments
                await pair.update_many(store, [(at + moved, v) for at, v in points], now)
            elif kind == "fetch":
                low, high, later = arguments
                await pair.fetch(store, *sorted((low + moved, high + moved)), now)
            else:
                low, high, step = arguments
                await pair.fetch(store, *sorted((low + moved, high + moved)), now, step)
                later = 0
            now += later
    async with WhisperStore.open(pair.theirs, "r") as store:
        await pair.fetch(store, now - store.longest_retention, now=now)


@pytest.mark.slow
@given(history=histories())
@settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_histories_give_same_bytes(tmp_path_factory, history):
    anyio.run(replay, tmp_path_factory.mktemp("pair"), history)


async def test_writers_take_turns_on_one_file(tmp_path):
    """Each implementation goes on with a file that the other has written."""
    pair = Pair(tmp_path)
    await pair.create()
    for i in range(60):
        stamp = NOW + 31 * i
        async with WhisperStore.open(pair.ours) as store:
            await store.update(i, stamp, stamp)
        whisper.update(pair.theirs, i, stamp, stamp)
        pair.check()
        pair.ours, pair.theirs = pair.theirs, pair.ours


async def test_open_store_sees_the_packages_writes(tmp_path):
    pair = Pair(tmp_path)
    await pair.create()
    async with WhisperStore.open(pair.ours) as store:
        assert set((await store.fetch(NOW - 600, now=NOW)).values) == {None}
        whisper.update(pair.ours, 2.5, NOW, NOW)
        assert (await store.fetch(NOW - 600, now=NOW)).values[-1] == 2.5


async def test_updates_of_tasks_are_serial(tmp_path):
    pair = Pair(tmp_path)
    await pair.create()
    stamps = [NOW - 11 * i for i in range(50)]
    async with WhisperStore.open(pair.ours) as store, anyio.create_task_group() as group:
        for stamp in stamps:
            group.start_soon(store.update, 1.0, stamp, NOW)
    for stamp in stamps:
        whisper.update(pair.theirs, 1.0, stamp, NOW)
    async with WhisperStore.open(pair.ours, "r") as store:
        await pair.fetch(store, NOW - 7200)
        coarse = await store.fetch(NOW - 2100, now=NOW, step=300)
        assert {value for value in coarse.values if value is not None} == {1.0}


async def test_first_points_lie_as_the_packages(tmp_path):
    """Several intervals reach an empty archive at once; one of them becomes its base."""
    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        pair = Pair(folder, factor=0)
        await pair.create()
        now = NOW + 777 * number
        async with WhisperStore.open(pair.ours) as store:
            await pair.update_many(store, [(now - 60 * i, i) for i in range(10)], now)


async def test_updates_of_empty_archive_all_count(tmp_path):
    """Here every store waits for the disk, and gives way meanwhile."""
    path = tmp_path / "file.wsp"
    await example.create(path, ARCHIVES, 0, "sum")
    always = aiommap.FlushPolicy.always()
    async with WhisperStore.open(path, flush=always) as store:
        async with anyio.create_task_group() as group:
            for i in range(5):
                group.start_soon(store.update, 1.0, NOW - 60 * i, NOW)
        fine = await store.fetch(NOW - 300, now=NOW)
        coarse = await store.fetch(NOW - 1800, now=NOW, step=300)
    assert fine.values == [1.0] * 5
    assert sum(value or 0 for value in coarse.values) == 5


async def test_now_and_timestamp_default(tmp_path):
    path = tmp_path / "file.wsp"
    await example.create(path, [(60, 100)])
    async with WhisperStore.open(path) as store:
        await store.update(1.5)
        await store.update_many([])
        assert 1.5 in (await store.fetch(0)).values
        with pytest.raises(WhisperError, match="before the start"):
            await store.fetch(NOW, NOW - 1)
        with pytest.raises(WhisperError, match=r"no archive of step 61: \[60\]"):
            await store.fetch(0, step=61)


@pytest.mark.parametrize(
    "archives",
    [
        [],
        [(0, 10)],
        [(60, 0)],
        [(60, 10), (60, 20)],
        [(60, 10), (90, 100)],
        [(60, 10), (120, 5)],
        [(60, 3), (300, 10)],
    ],
)
async def test_create_refuses_archives_that_do_not_fit(tmp_path, archives):
    with pytest.raises(WhisperError, match="archives"):
        await example.create(tmp_path / "file.wsp", archives)
    assert not os.listdir(tmp_path)
    if all(map(all, archives)):  # the package accepts zeros
        with pytest.raises(whisper.InvalidConfiguration):
            whisper.validateArchiveList(list(archives))


async def test_create_refuses_unknown_methods(tmp_path):
    for factor, method in [(0.5, "median"), (1.1, "sum"), (-0.1, "sum"), (math.nan, "sum")]:
        with pytest.raises(WhisperError, match="use one of"):
            await example.create(tmp_path / "file.wsp", ARCHIVES, factor, method)
    await example.create(tmp_path / "file.wsp", ARCHIVES, sparse=True)
    with pytest.raises(FileExistsError):
        await example.create(tmp_path / "file.wsp", ARCHIVES)


def header(*infos, method=1, factor=0.5):
    longest = infos[-1][1] * infos[-1][2] if infos else 0
    made = struct.pack("!2LfL", method, longest, factor, len(infos))
    return made + b"".join(struct.pack("!3L", *info) for info in infos)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "only 0"),
        (b"x" * 100, "only 100"),
        (b"\0\0\0\1\0\0\0\7" + header((28, 60, 10))[8:] + bytes(120), "longest retention 7"),
        (header((28, 60, 10), method=9) + bytes(120), "method 9"),
        (header((28, 60, 10), factor=1.5) + bytes(120), "factor 1.5"),
        (header() + bytes(120), "at least one"),
        (struct.pack("!2LfL", 1, 600, 0.5, 2**32 - 1), "only 16"),
        (header((28, 0, 10)) + bytes(120), "positive step"),
        (header((28, 60, 10)) + bytes(119), "'archive 0': .* only 147"),
        (header((20, 60, 10)) + bytes(120), "'header' .* 'archive 0'"),
        (header((40, 60, 10), (100, 300, 10)) + bytes(400), "'archive 0' .* 'archive 1'"),
        (header((160, 300, 10), (40, 60, 10)) + bytes(400), "no multiple"),
    ],
)
async def test_open_refuses_a_damaged_header(tmp_path, content, message):
    path = tmp_path / "file.wsp"
    path.write_bytes(content)
    with pytest.raises(WhisperError, match=f"no Whisper file: .*{message}"):
        async with WhisperStore.open(path):
            raise AssertionError("it was opened")
    assert path.read_bytes() == content


async def test_views_are_one_an_archive(tmp_path):
    path = tmp_path / "file.wsp"
    await example.create(path, [(60, 1440), (300, 2016), (3600, 8760)])
    async with WhisperStore.open(path, "r") as store:
        places = [(each.view.offset, each.view.length) for each in store.archives]
        assert places == [(52, 17280), (17332, 24192), (41524, 105120)]
        with pytest.raises(aiommap.AccessModeError, match='mode "r"'):
            await store.update(1.0)


def test_whisper_script_runs(tmp_path):
    for known in ("1", "[12]"):  # both runs may be within the same second
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path / "file.wsp"), "2.5"],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(rf"step 1: {known} of 3600 points known", done.stdout)
