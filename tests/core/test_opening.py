"""Opening in five modes, refusing files that cannot be mapped, and closing whatever happens."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading

import anyio
import anyio.to_thread
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.internals import Writer, core_of, workers_of
from tests.support.internals import workers as _workers
from tests.support.limiters import held, until_queued
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


HINT = r'nothing is open yet: write "async with aiommap\.open\(\.\.\.\) as f", or "f = await'


@pytest.mark.parametrize("name", ["read", "size", "no_such_thing"])
def test_open_without_await_warns(tmp_path, name):
    """The path need not exist, because nothing has touched it yet."""
    opening = aiommap.open(tmp_path / "file")
    with pytest.raises(AttributeError, match=rf"has no '{name}', as {HINT}") as caught:
        getattr(opening, name)
    assert (caught.value.name, caught.value.obj) == (name, opening)
    assert not hasattr(opening, name)


def test_open_in_a_plain_with_is_told(tmp_path):
    with pytest.raises(TypeError, match=f'plain "with", as {HINT}'):  # noqa: SIM117
        with aiommap.open(tmp_path / "file"):
            pass


@pytest.mark.parametrize(
    "use",
    [
        aiommap.open,
        aiommap.Hub().open,
        aiommap.Hub().watch,
        aiommap.Snapshot.open,
        aiommap.MappedBackend.open,
        aiommap.FileBackend.open,
        aiommap.follow,
    ],
    ids=lambda use: use.__qualname__,
)
def test_open_of_an_empty_path_is_refused(use):
    with pytest.raises(ValueError, match="path is empty: name a file"):
        use("")


@pytest.mark.parametrize("cls", [aiommap.Snapshot, aiommap.MappedBackend])
def test_open_of_a_descriptor_advises_a_path(cls):
    with pytest.raises(TypeError, match=rf"'data.bin': .*{cls.__name__}\.open\(path\)"):
        cls("data.bin")


@pytest.mark.parametrize("mode", ["r", "r+", "c", "w+", "x+"])
async def test_open_empty_file_in_every_mode(tmp_path, mode):
    path = tmp_path / "empty"
    if mode != "x+":
        path.write_bytes(b"")
    options = {"size": 0} if mode in ("w+", "x+") else {}
    async with aiommap.open(path, mode, **options) as f:
        assert (f.size, await f.read(0, 0), f.read_nowait(0, 0)) == (0, b"", b"")
        assert (await f.residency()).fraction == 1.0
        assert await f.prewarm() == 0
        assert bytes(f.view().memory) == b""
        assert [c async for c in f.chunks(10)] == []
        await f.flush()
        if mode not in ("r", "c"):
            await f.resize(5)
            await f.write(0, b"grown")
            assert await f.read(0, 5) == b"grown"


async def test_create_zeros_and_reserves_blocks(tmp_path, path):
    async with aiommap.open(tmp_path / "new", "x+", size=1 << 20) as f:
        assert await f.read(1 << 19, 4) == bytes(4)
    assert (tmp_path / "new").stat().st_blocks * 512 >= 1 << 20
    async with aiommap.open(tmp_path / "sparse", "x+", size=1 << 20, sparse=True):
        assert (tmp_path / "sparse").stat().st_blocks * 512 < 1 << 20
    async with aiommap.open(path, "w+", size=PAGE) as f:
        assert await f.read(0, PAGE) == bytes(PAGE)
    content = b"precious"
    path.write_bytes(content)
    with pytest.raises(FileExistsError):
        await aiommap.open(path, "x+", size=PAGE)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("a", {}, "use one of"),
        ("w+", {}, "needs size"),
        ("r", {"size": 1}, "takes no size"),
        ("x+", {"size": -1}, "cannot be negative"),
        ("x+", {"size": 10, "capacity": 5}, "less than size"),
        ("c", {"capacity": 5}, "cannot grow"),
        ("r", {"sparse": True}, "no meaning"),
    ],
)
async def test_open_with_impossible_options(path, mode, options, message):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        aiommap.open(path, mode, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("mode", "meant"),
    [
        ("rb", '"r"'),
        ("rt", '"r", and what is read and written is bytes'),
        ("r+b", r'"r\+"'),
        ("rb+", r'"r\+"'),
        ("w", r'"w\+" with size='),
        ("wb", r'"w\+" with size='),
        ("w+b", r'"w\+" with size='),
        ("xb", r'"x\+" with size='),
        ("a", r'"a\+", and append\(\)'),
        ("ab", r'"a\+", and append\(\)'),
    ],
)
def test_open_mode_of_builtin_gets_a_hint(path, mode, meant):
    with pytest.raises(ValueError, match=rf"use one of .*; for '{re.escape(mode)}' .*{meant}"):
        aiommap.open(path, mode)


@pytest.mark.parametrize("mode", [None, 0, ["r"], b"r", os.O_RDWR])
def test_open_mode_that_is_no_text(path, mode):
    with pytest.raises(TypeError, match="use one of 'r', 'r"):
        aiommap.open(path, mode)


@pytest.mark.parametrize("mode", ["", "rw", "+", "b", "R"])
def test_open_mode_that_means_nothing(path, mode):
    with pytest.raises(ValueError, match="use one of 'r', 'r") as caught:
        aiommap.open(path, mode)
    assert "; for" not in str(caught.value)


@pytest.mark.parametrize("mode", ["r", "r+", "w+"])
async def test_open_of_no_regular_file_names_it(tmp_path, mode):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        kinds = {"pipe": "a pipe", "folder": "a directory", "socket": "a socket"}
        for name, kind in [*kinds.items(), ("/dev/null", "a character device")]:
            with pytest.raises(aiommap.UnsupportedError, match=f"it is {kind}"):
                await aiommap.open(tmp_path / name, mode, **({"size": 1} if mode == "w+" else {}))


async def test_open_of_missing_file_is_plain(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        await aiommap.open(tmp_path / "missing")
    assert caught.value.filename == str(tmp_path / "missing")


async def test_create_on_full_disk_leaves_nothing(small_disk):
    old = small_disk / "old"
    old.write_bytes(b"keep" * 1000)
    for mode, path in (("x+", small_disk / "new"), ("w+", small_disk / "new"), ("w+", old)):
        with pytest.raises(OSError, match="No space") as caught:
            await aiommap.open(path, mode, size=4 << 20)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path)
    assert old.read_bytes() == b"keep" * 1000
    assert os.listdir(small_disk) == ["old"]
    async with aiommap.open(old, "r+") as f:
        with pytest.raises(OSError, match="No space"):
            await f.resize(4 << 20)
        assert (f.size, old.stat().st_size) == (4000, 4000)
        assert await f.read(0, 4) == b"keep"


async def test_sparse_write_on_full_disk_stores_nothing(small_disk):
    path = small_disk / "sparse"
    async with aiommap.open(path, "x+", size=4 << 20, sparse=True) as f:
        await f.write(0, b"early")
        with pytest.raises(OSError, match="No space") as caught:
            await f.write(PAGE, b"x" * (3 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert await f.read(0, 5) == b"early"
        await f.flush()


async def test_closed_file_refuses_every_verb(path):
    f = await aiommap.open(path, "r+")
    await f.aclose()
    await f.aclose()
    assert f.closed
    for verb in (
        lambda: f.read(0, 1),
        lambda: f.read_into(0, bytearray(1)),
        lambda: f.read_many([(0, 1)]),
        lambda: f.write(0, b"x"),
        lambda: f.write_many([(0, b"x")]),
        f.flush,
        lambda: f.flush_range(0, 1),
        f.start_writeback,
        f.prewarm,
        f.residency,
        lambda: f.advise(aiommap.Advice.RANDOM),
        lambda: f.resize(1),
        lambda: f.punch_hole(0, 1),
    ):
        with pytest.raises(anyio.ClosedResourceError, match="is closed"):
            await verb()
    with pytest.raises(anyio.ClosedResourceError, match="is closed"):
        f.view()


async def test_open_cycles_leave_nothing_behind(path):
    def count():
        with open("/proc/self/maps") as maps:
            mapped = sum(str(path) in line for line in maps)
        return len(os.listdir("/proc/self/fd")), mapped

    async with aiommap.open(path) as f:
        await f.prewarm()
    before, threads = count(), threading.active_count()
    for _ in range(100):
        async with aiommap.open(path, "r+") as f:
            await f.write(0, b"x")
    await until(lambda: all(now <= then for now, then in zip(count(), before, strict=True)))
    assert threading.active_count() <= threads + 8


async def test_open_cancelled_leaks_no_descriptor(path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await aiommap.open(path)
        async with anyio.create_task_group() as group:
            group.start_soon(aiommap.Hub().open(path).__aenter__)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_exception_survives_a_failing_close(path, outside):
    with pytest.raises(KeyError) as caught:  # noqa: PT012  the block is the case
        async with aiommap.open(path, "r+") as f:
            await f.write(10 * PAGE, b"lost")
            outside(path, 0)
            raise KeyError("original")
    assert "flush failed" in caught.value.__notes__[0]


async def test_verbs_skip_the_applications_threads(path):
    release = threading.Event()
    async with aiommap.open(path, "r+") as f, anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(anyio.to_thread.run_sync, release.wait)
        await anyio.sleep(0)
        with anyio.fail_after(100):
            await f.prewarm()
            await f.write(0, b"x" * 16 * PAGE)
            await f.flush()
            await f.aclose()
        release.set()


async def test_open_hundreds_shares_hops(path, monkeypatch):
    hops = 0
    run_in_some_thread = _workers.run_in_some_thread

    def counted(job, tell):
        nonlocal hops
        hops += 1
        run_in_some_thread(job, tell)

    monkeypatch.setattr(_workers, "run_in_some_thread", counted)
    async with aiommap.Hub() as hub:
        async with hub.open(path) as f:
            assert hops == 1
            await f.read(0, 1)
            before = hops
        assert hops - before == 1
        before = hops
        async with anyio.create_task_group() as group:
            for _ in range(300):
                group.start_soon(hub.open(path).__aenter__)
        assert hops - before <= 20


async def test_write_cancelled_lands_whole_or_never(path, monkeypatch):
    """I8: a gate holds the queue, so the test knows which write has begun."""
    gate, begun = threading.Event(), threading.Event()
    apply = Writer._apply

    def gated(self, writes):
        begun.set()
        gate.wait(100)
        return apply(self, writes)

    monkeypatch.setattr(Writer, "_apply", gated)
    async with aiommap.open(path, "r+") as f:
        big = 20 * PAGE
        ended = []

        async def write(offset, data, scope):
            with scope:
                await f.write(offset, data)
            ended.append((data[:1], scope.cancelled_caught))

        await f.resize(64 * PAGE)
        first, second = anyio.CancelScope(), anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(write, 0, b"1" * big, first)
            await anyio.to_thread.run_sync(begun.wait, 20)
            group.start_soon(write, 30 * PAGE, b"2" * big, second)
            while not f._open.writer._queue.waiting():
                await anyio.lowlevel.checkpoint()
            second.cancel()
            while not ended:
                await anyio.lowlevel.checkpoint()
            assert ended == [(b"2", True)]
            first.cancel()
            await anyio.lowlevel.checkpoint()
            assert len(ended) == 1
            gate.set()
        assert ended[1] == (b"1", True)
        assert await f.read(0, big) == b"1" * big
        assert await f.read(30 * PAGE, big) == bytes(big)


@pytest.mark.parametrize("policy", ["always", "manual"])
async def test_close_waits_for_a_queued_write(path, policy):
    f = await aiommap.open(path, "r+", flush=getattr(aiommap.FlushPolicy, policy)())
    await f.resize(32 * PAGE)
    workers, receipts, closed = workers_of(f), [], []
    limiter = workers.flushes if policy == "always" else workers.stores

    async def write():
        receipts.append(await f.write(0, b"x" * 17 * PAGE))

    async def close():
        await f.aclose()
        closed.append(True)

    async with anyio.create_task_group() as group:
        with held(workers, limiter):
            group.start_soon(write)
            await until_queued(limiter)
            group.start_soon(close)
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
            early = closed[:]
    assert not early
    assert receipts[0].durable
    assert path.read_bytes()[: 17 * PAGE] == b"x" * 17 * PAGE


async def test_close_lets_no_verb_in(path):
    """lifecycle.1: nobody would flush a store that an inline verb made then."""
    f = await aiommap.open(path, "r+")
    await f.write(0, b"x")
    async with anyio.create_task_group() as group:
        with held(workers_of(f), workers_of(f).control):
            group.start_soon(f.aclose)
            await until_queued(workers_of(f).control)
            for verb in (f.write, f.read):
                with pytest.raises(anyio.ClosedResourceError):
                    await verb(0, b"lost" if verb == f.write else 4)
    assert path.read_bytes()[:4] == b"xAAA"


async def test_close_when_release_fails(path):
    f = await aiommap.open(path, "r+")
    release = f._open._release

    async def fail(core):
        await release(core)
        raise OSError("close(2) failed")

    f._open._release = fail
    for _ in range(2):
        with pytest.raises(OSError, match="close"):
            await f.aclose()
    assert f._mapping.closed


async def test_close_waits_for_late_activities(path):
    f = await aiommap.open(path, "r+")
    core, closed = core_of(f), []

    async def close():
        await f.aclose()
        closed.append(True)

    async with anyio.create_task_group() as group:
        core.lifecycle.begin_activity()
        group.start_soon(close)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        core.lifecycle.end_activity()
        core.lifecycle.begin_activity()
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert not closed
        core.lifecycle.end_activity()


async def test_opening_entered_by_one_block_at_a_time(path):
    """Otherwise the first block would close the second file, and leave its own open."""
    opening = aiommap.open(path)
    for _ in range(2):
        async with opening as f:
            with pytest.raises(RuntimeError, match="by one block at a time"):
                await opening.__aenter__()
            assert await f.read(0, 1)
        assert f.closed
    missing = aiommap.open(f"{path}.missing")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            await missing.__aenter__()
