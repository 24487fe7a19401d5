"""Changes while a verb works without the GIL, between its check and its accounting (mapping.1)."""

from __future__ import annotations

import sys

import pytest

from tests.support.gates import expect_gated
from tests.support.scripts import expect_alive

#: Verbs of workers, the call in which each is held, and its result if its range is cut off.
WORKER_VERBS = {
    "read": ("pread", "m.read, 0, SIZE", "OutOfBoundsError"),
    "read_into": ("pread", "m.read_into, 0, bytearray(SIZE)", "OutOfBoundsError"),
    "residency": ("mincore", "m.residency, 0, SIZE", "OutOfBoundsError"),
    "lock": ("mlock2", "m.lock, 0, SIZE", "OutOfBoundsError"),
    "populate": ("populate", "m.populate, 0, SIZE, True", "16 * PAGE"),
}


@pytest.mark.parametrize("verb", WORKER_VERBS)
def test_verb_cut_off_half_way(tmp_path, verb):
    """The result is as if the resize had come first; nothing beyond the size is counted."""
    call, arguments, answer = WORKER_VERBS[verb]
    after = verb in ("populate", "lock", "residency")
    expect_gated(
        f"""
        m = native()
        with held("{call}", {arguments}, after={after}) as future:
            m.truncate(PAGE)
        found = outcome(future)
        assert found == ({answer} if {answer[0].isdigit()} else "{answer}"), found
        assert all(end <= PAGE for _, end in m.dirty_runs()), m.dirty_runs()
        assert m.min_kept_length <= m.size == PAGE
        m.begin_writeback(0, PAGE)
        m.close()
        """.replace(f"({answer} if", f"({answer if answer[0].isdigit() else 0} if"),
        tmp_path,
    )


@pytest.mark.parametrize("verb", WORKER_VERBS)
def test_verb_cut_and_grown_half_way(tmp_path, verb):
    call, arguments, _ = WORKER_VERBS[verb]
    expect_gated(
        f"""
        m = native()
        with held("{call}", {arguments}, after=True) as future:
            m.truncate(PAGE)
            m.extend(SIZE, SIZE, PAGE, SIZE)
        assert not isinstance(outcome(future), str), outcome(future)
        assert m.read_nowait(8 * PAGE, PAGE) in (None, bytes(PAGE))
        m.write_many([(8 * PAGE, memoryview(b"new"))])
        assert open(os.path.join(path, "file"), "rb").read()[8 * PAGE:][:3] == b"new"
        m.close()
        """,
        tmp_path,
    )


@pytest.mark.parametrize("verb", WORKER_VERBS)
def test_verb_closed_half_way(tmp_path, verb):
    call, arguments, _ = WORKER_VERBS[verb]
    expect_gated(
        f"""
        m = native()
        with held("{call}", {arguments}, after=True) as future:
            m.close()
        outcome(future)
        """,
        tmp_path,
    )


def test_worker_stores_cut_off_dirty_nothing(tmp_path):
    expect_gated(
        """
        m = native()
        stores = [(0, memoryview(b"a" * PAGE)), (8 * PAGE, memoryview(b"b" * PAGE))]
        with held("pwritev", m.write_many, stores, after=True):
            m.truncate(PAGE)
        found = m.dirty_runs(), m.min_kept_length
        assert found == ([(0, PAGE)], PAGE), found
        m.close()
        """,
        tmp_path,
    )


@pytest.mark.parametrize("refused", [False, True], ids=["done", "refused"])
@pytest.mark.parametrize("locked", [False, True], ids=["plain", "locked"])
def test_read_beside_own_shrink(tmp_path, refused, locked):
    """Reads of a part and of the whole file; also if the kernel refuses the shrink."""
    expect_gated(
        f"""
        m = native(64 * PAGE)
        m.populate(0, 64 * PAGE, False)
        if {locked}:
            m.lock(0, 64 * PAGE)
            m.set_locked(0, 64 * PAGE, True)
        old = b"o" * 64 * PAGE
        if {refused}:
            fail("ftruncate", 1, errno.EPERM)
        for length in (PAGE, 16 * PAGE, 64 * PAGE):  # with the GIL, without, and all
            assert m.read_nowait(64 * PAGE - length, length) == old[:length]
        view = memoryview(m.lease(0, 64 * PAGE, True))
        with held("{"ftruncate" if refused else "fence"}", m.truncate, PAGE) as future:
            for length in (PAGE, 16 * PAGE, 64 * PAGE):
                assert m.read_nowait(64 * PAGE - length, length) is None
                if {refused}:
                    assert m.read(64 * PAGE - length, length) == old[:length]
                    view[63 * PAGE] = view[63 * PAGE]
                else:
                    assert outcome(pool.submit(m.read, 8 * PAGE, length)) == "OutOfBoundsError"
            assert view[63 * PAGE] == (old[0] if {refused} else 0) and m.first_bad is None
            assert m.read_nowait(0, PAGE) == old[:PAGE]
            assert m.write_now(8 * PAGE, b"x") is None
            assert m.size == 64 * PAGE
        if {refused}:
            assert outcome(future) == "PermissionError"
            assert m.read_nowait(0, 64 * PAGE) == old and not m.fenced
        else:
            assert m.size == PAGE and m.read_nowait(0, 2 * PAGE) is None
        m.close()
        """,
        tmp_path,
    )


def test_word_beside_own_shrink(tmp_path):
    expect_gated(
        """
        async def main():
            async with aiommap.open(make(), "r+", flush=NEVER) as f:
                word = f.atomic_u32(8 * PAGE)
                assert word.load() == 0x6F6F6F6F
                for refused in (True, False):
                    if refused:
                        fail("ftruncate", 1, errno.EPERM)
                    arm("ftruncate")
                    shrink = asyncio.ensure_future(f.resize(PAGE))
                    await anyio.to_thread.run_sync(gate.gate_reached)
                    add = pool.submit(word.fetch_add, 1)
                    near = f.atomic_u32(0).load()
                    assert near == 0x6F6F6F6F and not add.done()
                    gate.gate_open()
                    with contextlib.suppress(PermissionError):
                        await shrink
                    found = await asyncio.wrap_future(add) if refused else outcome(add)
                    assert found == (0x6F6F6F6F if refused else "OutOfBoundsError"), found
                    if refused:
                        assert word.load() == 0x6F6F6F70

        run(main)
        """,
        tmp_path,
    )


def test_growth_is_not_adopted_in_a_shrink(tmp_path):
    """Otherwise the fence would be lifted, and the file cut behind the back of its views."""
    expect_gated(
        """
        async def main():
            async with aiommap.open(make(), "r+", capacity=1 << 30, flush=NEVER) as f:
                grow = f.view(growable=True)
                plain = f.view(0, SIZE)
                memory = plain.memory
                grow.memory[4 << 20] = 1
                arm("ftruncate")
                shrink = asyncio.ensure_future(f.resize(PAGE))
                await anyio.to_thread.run_sync(gate.gate_reached)
                looked = [f.size for _ in range(3)]  # reading the size could adopt the growth
                assert looked[0] == looked[-1]
                gate.gate_open()
                await shrink
                assert f.size == PAGE
                assert memory[-1] == 0 and f._mapping.first_bad is None
                await f.read(0, PAGE)
                del memory
                plain.release()
                grow.release()

        run(main)
        """,
        tmp_path,
    )


def test_growable_regions_of_many_threads(tmp_path):
    """A thread that releases the GIL to unmap an old region has first stored the new one."""
    expect_gated(
        """
        m = native(PAGE, 64 * PAGE)
        m.lease_growable(0, 64 * PAGE)
        m.rebase((1 << 10) * PAGE)
        with held("munmap", m.lease_growable, 0, 2 * PAGE) as first:
            second = memoryview(m.lease_growable(0, 2 * PAGE))
            second[PAGE] = 7
        memoryview(first.result())[0] = 1
        assert m.size == os.fstat(m.fd).st_size and m.first_bad is None
        del first, second
        m.close()
        """,
        tmp_path,
    )


def test_cut_between_stat_and_store(tmp_path):
    """The store makes the file long again, with a hole where others cut it off."""
    expect_gated(
        """
        async def main():
            name = make(size=64 * PAGE)
            async with aiommap.open(name, "r+", flush=FlushPolicy.manual()) as f:
                first = await f.write(0, b"A" * 20 * PAGE)
                cut = ctypes.CFUNCTYPE(None)(lambda: os.truncate(name, 0))
                gate.gate_before(b"pwritev", cut)
                second = await f.write(44 * PAGE, b"B" * 20 * PAGE)
                try:
                    await f.flush()
                except aiommap.FlushError as error:
                    assert name in str(error), error
                else:
                    raise AssertionError("zeros were called durable")
                assert not first.durable and not second.durable
                with contextlib.suppress(aiommap.FlushError):
                    await f.aclose()

        run(main)
        """,
        tmp_path,
    )


LEASES = """
async def main():
    class Thing:
        def __init__(self):
            self.me = self

        def __del__(self):
            time.sleep(0)  # releases the GIL, as closing a file or a lock does

    never = aiommap.FlushPolicy.never()
    async with aiommap.open(make(size=4 * PAGE), "r+", sparse=True, flush=never) as f:
        async def grow():
            for _ in range(100):
                await f.resize(f.capacity + PAGE)

        gc.freeze()  # so that the collector skips what exists already
        gc.set_threshold(20, 5, 5)
        task = asyncio.create_task(grow())
        while not task.done():
            for _ in range(20):
                Thing()
                with f.view(0, 4 * PAGE) as view:
                    view.memory[0:4] = b"abcd"
            await asyncio.sleep(0)
        gc.set_threshold(0)
        await task

run(main)
print("alive")
"""


@pytest.mark.slow
def test_garbage_while_a_lease_is_made(tmp_path):
    expect_alive(LEASES, tmp_path)


CLOSED_BY_GARBAGE = """
fd = os.open(make(), os.O_RDWR)
m = aiommap._native.Mapping(fd, SIZE, SIZE, FLAGS)
m.attach(object(), aiommap._native.Receipt)
queue = aiommap._native.Pool(object, print).queue(1, 16, 1)
keep = [[] for _ in range(300)]  # empties the free list of lists
gc.callbacks.append(lambda phase, info: m.close())
gc.set_threshold(1)
try:
    {verb}
except ValueError as error:
    assert "closed" in str(error), error
gc.callbacks.clear()
print("alive")
"""


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="since Python 3.12 no native call collects garbage"
)
@pytest.mark.parametrize(
    "verb",
    [
        "m.residency(0, SIZE)",
        "m.lease(0, SIZE, True)",
        "m.lease_growable(0, SIZE)",
        "m.write_many([(0, memoryview(b'x'))])",
        "m.begin_commit(queue, [(0, memoryview(b'x'))], print)",
        "m.stage(0, bytearray(1))",
        "m.write_now(0, b'x')",
        "m.read(0, SIZE)",
        "m.begin_writeback(0, SIZE)",
        "m.oldest_leases(9)",
    ],
)
def test_closed_by_garbage_half_way(tmp_path, verb):
    expect_alive(CLOSED_BY_GARBAGE.format(verb=verb), tmp_path)


CLOSED_BY_BUFFER = """
fd = os.open(make(), os.O_RDWR)
m = aiommap._native.Mapping(fd, SIZE, SIZE, FLAGS)
m.attach(object(), aiommap._native.Receipt)
queue = aiommap._native.Pool(object, print).queue(1, 16, 1)
aiommap._native.time_slice_renew(aiommap._native.time_slice_yield())

class Evil:
    def __init__(self, length):
        self.data = bytearray(length)

    def __buffer__(self, flags):
        {does}
        return memoryview(self.data)

stores = [(0, Evil(10)), (SIZE - 10, Evil(10))]
try:
    found = {verb}
except ValueError as error:
    found = None
if {closes}:
    assert found is None, found
print("alive")
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="buffers in Python came with 3.12")
@pytest.mark.parametrize("does", ["m.close()", "stores.clear()", "m.truncate(PAGE)"])
@pytest.mark.parametrize(
    "verb",
    [
        "m.write_now(SIZE - 10, Evil(10))",
        "m.write_inline(SIZE - 10, Evil(10))",
        "m.stage(SIZE - 10, Evil(10))",
        "m.read_into_inline(0, Evil(40960))",
        "m.read_into(0, Evil(40960))",
        "m.write_many(stores)",
        "m.begin_commit(queue, stores, print)",
    ],
)
def test_buffer_that_changes_what_it_is_for(tmp_path, verb, does):
    closes = does == "m.close()"
    expect_alive(CLOSED_BY_BUFFER.format(verb=verb, does=does, closes=closes), tmp_path)


def test_list_that_changes_while_loaded(tmp_path):
    """``__index__`` may run Python code, which changes the list during the call."""
    expect_alive(
        """
        fd = os.open(make(), os.O_RDWR)
        m = aiommap._native.Mapping(fd, SIZE, SIZE, FLAGS)
        m.attach(object(), aiommap._native.Receipt)

        class Evil:
            def __index__(self):
                items.clear()
                return 0

        for call in (m.end_writeback, m.write_many):
            for _ in range(3):
                items = [(Evil(), memoryview(b"x") if call == m.write_many else PAGE)] * 50
                call(items)
        m.close()
        print("alive")
        """,
        tmp_path,
    )


def test_error_with_the_largest_numbers(tmp_path):
    """Making the message must not overflow an integer; only UBSan sees that."""
    expect_alive(
        """
        fd = os.open(make(), os.O_RDWR)
        m = aiommap._native.Mapping(fd, SIZE, SIZE, FLAGS)
        top = 2**63 - 1
        for offset, length in ((top, top), (-top - 1, -top - 1), (1, top), (top, 1)):
            for verb in (m.lease_growable, m.read, m.punch_hole, m.lock):
                try:
                    verb(offset, length)
                except ValueError:
                    continue
                raise AssertionError(verb)
        m.close()
        print("alive")
        """,
        tmp_path,
    )
