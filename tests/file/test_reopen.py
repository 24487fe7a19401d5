"""Moving to the file that a path names: no written byte is lost unasked, and old views live."""

from __future__ import annotations

import errno
import os

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import ChangeKind, FlushPolicy
from tests.support.internals import core_of, kept_threads, run_in_thread, workers_of
from tests.support.limiters import held, until_queued

pytestmark = pytest.mark.anyio


def put_another(path, data=b"another" * PAGE):
    other = path.with_name("other")
    other.write_bytes(data)
    os.replace(other, path)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
async def test_reopen_moves_to_the_new_file(path, mode):
    async with aiommap.open(path, mode) as f:
        put_another(path)
        assert await f.read(0, 2) == b"AA"
        await f.reopen()
        assert (f.size, f.mode, f.orphaned, f.closed) == (7 * PAGE, mode, False, False)
        assert await f.read(0, 7) == b"another"
        if mode != "r":
            await f.write(0, b"x")
            await f.flush()
            assert path.read_bytes()[:2] == (b"xn" if mode == "r+" else b"an")


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
async def test_reopen_keeps_memory_of_old_views(path, mode):
    async with aiommap.open(path, mode) as f:
        with f.view(0, PAGE) as used, f.view(PAGE, PAGE) as unused:
            memory = used.memory
            put_another(path)
            await f.reopen(discard=True)  # because writable memory counts as dirty
            assert await f.read(0, 7) == b"another"
            assert bytes(memory[:2]) == b"AA"
            assert bytes(unused.memory[:2]) == b"BB"
            del memory


async def test_reopen_ends_verbs_of_old_views(path):
    """Else a flush by an old view would report success for stores that went to the old file."""
    async with aiommap.open(path, "r+") as f:
        with f.view(0, PAGE) as view:
            memory = view.memory
            put_another(path)
            await f.reopen(discard=True)
            memory[0] = ord("Z")
            for verb in (
                view.flush,
                lambda: view.read(0, 1),
                lambda: view.read_into(0, bytearray(1)),
                lambda: view.write(0, b"x"),
                view.start_writeback,
                view.prewarm,
                view.residency,
            ):
                with pytest.raises(anyio.ClosedResourceError, match="was reopened"):
                    await verb()
            for make in (view.view, lambda: view.split_at(1), lambda: view.atomic_u32(0)):
                with pytest.raises(anyio.ClosedResourceError, match="was reopened"):
                    make()
            memory.release()
    assert path.read_bytes().startswith(b"another")


@pytest.mark.parametrize("mode", ["w+", "x+"])
async def test_reopen_ends_allocators(tmp_path, mode):
    """Opening filled the old file with zeros; the new file may hold anything."""
    path = tmp_path / "made"
    async with aiommap.open(path, mode, size=PAGE) as f:
        put_another(path)
        await f.reopen(discard=True)
        with pytest.raises(ValueError, match="may hold ranges that were handed out before"):
            f.allocator()
        assert f.allocator(start=PAGE).start == PAGE


async def test_reopen_of_same_file_takes_its_size(path):
    async with aiommap.open(path, "r+") as f:
        core = core_of(f)
        os.truncate(path, 20 * PAGE)
        await f.reopen()
        assert (f.size, core_of(f)) == (20 * PAGE, core)


async def test_reopen_without_a_file_keeps_the_old(path):
    async with aiommap.open(path) as f:
        path.unlink()
        with pytest.raises(FileNotFoundError) as caught:
            await f.reopen()
        assert caught.value.filename == str(path)
        assert await f.read(0, 1) == b"A"


async def test_reopen_refuses_unflushed_orphan(path):
    failures = []
    f = await aiommap.open(path, "r+")
    f.on_error(failures.append)
    receipt = await f.write(0, b"only here")
    put_another(path)
    with pytest.raises(aiommap.FlushError, match="has no name left") as caught:
        await f.reopen()
    assert caught.value.errno == errno.ESTALE
    assert f.orphaned
    assert await f.read(0, 9) == b"only here"
    with pytest.raises(aiommap.FlushError):
        await f.reopen()
    await f.reopen(discard=True)
    assert await f.read(0, 7) == b"another"
    assert not receipt.durable
    with pytest.raises((aiommap.FlushError, anyio.ClosedResourceError)):
        await receipt.wait_durable()
    await f.write(0, b"on the new one")
    await f.flush()
    assert path.read_bytes()[:14] == b"on the new one"
    await f.aclose()
    await anyio.sleep(0)
    assert len(failures) == 1


async def test_reopen_after_flush_moves(path):
    async with aiommap.open(path, "r+") as f:
        await f.write(0, b"flushed")
        await f.flush()
        put_another(path)
        await f.reopen()
        assert await f.read(0, 7) == b"another"


@pytest.mark.parametrize("discard", [False, True])
async def test_reopen_lets_durable_write_end(path, discard):
    f = await aiommap.open(path, "r+", flush=FlushPolicy.always())
    core, workers = core_of(f), workers_of(f)

    async def write():
        with pytest.raises(aiommap.FlushError, match="has no name left"):
            await f.write(0, b"old")

    async def reopen():
        if discard:
            await f.reopen(discard=True)
        else:
            with pytest.raises(aiommap.FlushError, match="has no name left"):
                await f.reopen()

    with path.open("rb") as old:
        put_another(path)
        async with anyio.create_task_group() as group:
            with held(workers, workers.flushes):
                group.start_soon(write)
                await until_queued(workers.flushes)
                group.start_soon(reopen)
                while core_of(f) is core if discard else not core.orphaned:
                    await anyio.sleep(0)
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
        assert old.read(3) == b"old"
    if not discard:
        await f.reopen(discard=True)
    assert await f.read(0, 7) == b"another"
    await f.aclose()


async def test_reopen_under_never_discards_stores(path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.never()) as f:
        await f.write(0, b"let go")
        put_another(path)
        await f.reopen()
        assert f.flush_policy == FlushPolicy.never()
        assert await f.read(0, 7) == b"another"


async def test_reopen_keeps_settings(path):
    async with aiommap.open(path, "r+", capacity=64 * PAGE) as f:
        f.flush_policy = FlushPolicy.always()
        put_another(path, bytes(80 * PAGE))
        await f.reopen()
        assert f.flush_policy == FlushPolicy.always()
        assert f.capacity == 80 * PAGE
        put_another(path)
        await f.reopen()
        assert f.capacity == 64 * PAGE


async def test_reopen_of_a_created_file(tmp_path):
    path = tmp_path / "made"
    async with aiommap.open(path, "w+", size=PAGE) as f:
        await f.flush()
        put_another(path)
        await f.reopen()
        assert (f.mode, f.size) == ("w+", 7 * PAGE)
        assert path.read_bytes()[:7] == b"another"


async def test_reopen_keeps_subscriptions(path):
    async with aiommap.open(path) as f, f.watch() as changes:
        with anyio.fail_after(100):
            for _ in range(3):
                put_another(path)
                assert (await anext(changes)).kind is ChangeKind.REPLACED
                assert f.orphaned
                await f.reopen()
                assert not f.orphaned
            os.truncate(path, 1)
            assert (await anext(changes)).kind is ChangeKind.TRUNCATED
            assert not f.orphaned


async def test_reopen_does_not_report_own_writes(path):
    async with aiommap.open(path, "r+") as f, f.watch(poll_interval=0.002) as changes:
        with anyio.fail_after(100):
            put_another(path)
            assert (await anext(changes)).kind is ChangeKind.REPLACED
            await f.reopen()
            for i in range(10):
                await f.write(i * PAGE // 2, b"own")
                await f.flush()
                await anyio.sleep(0.003)
            os.truncate(path, 8 * PAGE)
            assert (await anext(changes)).kind is ChangeKind.GROWN


async def test_reopen_under_readers_fails_none(path):
    """Reads that are under way when the file moves finish on the old file."""
    put_another(path, b"0" * (64 * PAGE))
    done = 0
    async with aiommap.open(path) as f:

        async def read():
            nonlocal done
            for _ in range(40):
                parts = await f.read_many([(i * PAGE, 16) for i in range(64)])
                assert len(set(b"".join(parts))) == 1
                whole = await f.read(0, 64 * PAGE)
                assert whole.count(whole[:1]) == len(whole)
                done += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(read)
            for i in range(1, 8):
                await anyio.sleep(0.01)
                put_another(path, b"%d" % i * (64 * PAGE))
                await f.reopen()
    assert done == 800


async def test_reopen_under_writers_loses_nothing(path):
    """The path names the same file all the time, so a reopen only refreshes it."""
    async with aiommap.open(path, "r+") as f:
        async with anyio.create_task_group() as tasks:

            async def write():
                for i in range(50):
                    await f.write(i * 16, b"%-16d" % i)
                    await anyio.lowlevel.checkpoint()

            for _ in range(4):
                tasks.start_soon(write)
            for _ in range(5):
                await f.reopen()
        await f.flush()
    found = path.read_bytes()
    assert [int(found[i * 16 : i * 16 + 16]) for i in range(50)] == list(range(50))


async def test_reopen_releases_old_descriptors(path):
    def count():
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), maps.read().count("(deleted)")

    async with aiommap.open(path) as f:
        before = await anyio.to_thread.run_sync(count)
        for _ in range(5):
            put_another(path)
            await f.reopen()
        await f._open.wait_earlier()
        after = await anyio.to_thread.run_sync(count)
        assert after <= before


async def test_reopen_while_closing_closes(path):
    f = await aiommap.open(path)
    put_another(path)
    async with anyio.create_task_group() as tasks:

        async def reopen():
            with pytest.raises(anyio.ClosedResourceError):
                await f.reopen()

        tasks.start_soon(reopen)
        await anyio.lowlevel.checkpoint()
        await f.aclose()
    assert f.closed
    with pytest.raises(anyio.ClosedResourceError):
        await f.read(0, 1)


async def test_reopen_at_once_moves_once(path):
    async with aiommap.open(path) as f:
        put_another(path)
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(f.reopen)
        assert await f.read(0, 7) == b"another"


async def test_reopen_in_a_locked_block(path):
    async with aiommap.open(path) as f:
        async with f.locked(0, PAGE):
            put_another(path)
            await f.reopen()
        assert await f.read(0, 7) == b"another"


async def test_reopen_cancelled_leaves_one_file(path):
    async with aiommap.open(path) as f:
        for turns in range(8):
            put_another(path)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def cancel(turns=turns, scope=scope):
                        for _ in range(turns):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()

                    tasks.start_soon(cancel)
                    await f.reopen()
            assert len(await f.read(0, 7)) == 7
        await f.reopen()
        assert await f.read(0, 7) == b"another"


@pytest.mark.parametrize("loss", ["read", "private", "stored"])
async def test_reopen_heals_a_poisoned_file(path, outside, loss):
    """The path names the same file; the caller has to give up stores of views by discard=True."""
    data = path.read_bytes()
    async with aiommap.open(path, {"read": "r", "private": "c", "stored": "r+"}[loss]) as f:
        with f.view() as view:
            memory = view.memory
            outside(path, PAGE)
            if loss != "stored":
                assert memory[5 * PAGE] == 0
            else:
                memory[5 * PAGE] = 7
            path.write_bytes(data)
            remedy = "trusted: reopen the" if loss == "read" else r"after reopen\(discard=True\)"
            with pytest.raises(aiommap.MappingFaultError, match=remedy) as caught:
                await f.read(0, 1)
            assert (caught.value.poisoned, caught.value.offset) == (True, 5 * PAGE)
            assert caught.value.discards == (loss != "read")
            found = f.statistics()
            assert (found.poisoned, found.flush_failed) == (True, loss == "stored")
            if loss != "read":
                refused = (aiommap.MappingFaultError, aiommap.AccessModeError)
                with pytest.raises(refused, match="discard=True"):
                    await f.reopen()
                assert not f.orphaned
            await f.reopen(discard=loss != "read")
            assert await f.read(0, len(data)) == data
            assert memory[5 * PAGE] == (7 if loss == "stored" else 0)  # the old mapping
            del memory
        found = f.statistics()
        assert (found.poisoned, found.flush_failed) == (False, False)
        if loss == "stored":
            receipt = await f.write(5 * PAGE, b"healed")
            await receipt.wait_durable()
            assert path.read_bytes()[5 * PAGE :][:6] == b"healed"


async def test_reopen_refuses_private_stores(path):
    async with aiommap.open(path, "c") as f:
        await f.write(0, b"only here")
        await f.reopen()  # the path names the same file, so nothing is lost
        put_another(path)
        with pytest.raises(aiommap.AccessModeError, match="private stores would be lost"):
            await f.reopen()
        assert await f.read(0, 9) == b"only here"
        await f.reopen(discard=True)
        assert await f.read(0, 7) == b"another"


async def test_reopen_without_a_thread(path, monkeypatch):
    async with aiommap.open(path, "r+") as f:
        old = core_of(f)

        def refuse_afterwards(job, tell):
            if core_of(f) is not old:
                raise RuntimeError("can't start new thread")
            run_in_thread(job, tell)

        put_another(path)
        with monkeypatch.context() as patches:
            patches.setattr(kept_threads, "run_in_thread", refuse_afterwards)
            await f.reopen()
            await f._open.wait_earlier()
            assert old.mapping.closed
        assert await f.read(0, 2) == b"an"


async def test_reopen_refuses_queued_private_stores(path):
    async with aiommap.open(path, "c") as f:
        workers, refused, long = workers_of(f), [], b"x" * 16 * PAGE

        async def move():
            with pytest.raises(aiommap.AccessModeError, match="private stores would be lost"):
                await f.reopen()
            refused.append(True)

        async with anyio.create_task_group() as group:
            with held(workers, workers.stores):
                f._mapping.inline_writes = False  # because the file is too short for a queued write
                group.start_soon(f.write, 0, long)
                await until_queued(workers.stores)
                put_another(path)
                group.start_soon(move)
                for _ in range(5):  # hops, while a worker opens the path again
                    async with aiommap.open(path, "r"):
                        pass
                assert not refused
        assert refused
        assert await f.read(0, len(long)) == long
