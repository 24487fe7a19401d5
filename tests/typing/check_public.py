"""The types that type checkers infer for the public API; checked, never run.

An ``ignore`` with a code marks a call that type checkers must refuse. If they accepted it, they
would report the comment as unused.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, assert_type

import numpy as np
from numpy.typing import NDArray

import aiommap
from aiommap import (
    Advice,
    AllocatedRange,
    AsyncLock,
    AtomicU32,
    AtomicU32Array,
    AtomicU64,
    AtomicU64Array,
    Change,
    ChangeKind,
    Changes,
    Distribution,
    FileBackend,
    FileState,
    FileStatistics,
    FlushError,
    FlushPolicy,
    Generations,
    Hub,
    LeasedRange,
    LiveFolder,
    LiveSnapshot,
    Log,
    LogReceipt,
    LogRecord,
    LogSegment,
    LogStatistics,
    MappedBackend,
    MappedFile,
    MappedFileError,
    MappingFaultError,
    Opening,
    OutOfBoundsError,
    RangeAllocator,
    Records,
    Recovered,
    Residency,
    Snapshot,
    SnapshotFile,
    StorageBackend,
    Subscription,
    View,
    WriteReceipt,
    testing,
)
from aiommap.numpy import NpyFile, load_npy, open_npy


async def snapshot(path: Path, hub: Hub) -> None:
    assert_type(Snapshot.open(path), Opening[Snapshot])
    async with Snapshot.open(path, hub=hub, prewarm=True) as opened:
        assert_type(opened, Snapshot)
        assert_type(await opened.read_exact(0, 1), bytes)
        assert_type(await opened.read(0, 1), bytes)
        assert_type(await opened.read_many([(0, 1)]), list[bytes])
        async for page in opened.pages():
            assert_type(page, bytes)
        assert_type(opened.carve({"a": (0, 1)}), dict[str, View])
        assert_type(opened.array("<u1", 4), NDArray[Any])
        assert_type(await opened.prewarm(), int)
        assert_type(await opened.residency(), Residency)
        assert_type(opened.view(), View)
        assert_type(opened.file(), SnapshotFile)
        with opened.hold() as held:
            assert_type(held, Snapshot)
    Snapshot.open(path, mode="r+")  # type: ignore[call-arg]


async def following(path: Path, hub: Hub) -> None:
    async def check(snapshot: Snapshot) -> None: ...
    async def is_good(snapshot: Snapshot) -> bool:
        return bool(await snapshot.read_exact(0, 1))

    def sync(snapshot: Snapshot) -> bool:
        return snapshot.size > 0

    async def length(snapshot: Snapshot) -> int:
        return snapshot.size

    def told(error: Exception) -> None: ...
    async def told_later(error: Exception) -> None: ...

    assert_type(aiommap.follow(path), Opening[LiveSnapshot])
    async with aiommap.follow(path, prewarm=False, validate=check, on_error=told, hub=hub) as live:
        assert_type(live, LiveSnapshot)
        assert_type(live.current, Snapshot)
        assert_type((live.generation, live.path, live.closed), tuple[int, str, bool])
        assert_type(aiter(live), Generations)
        async for snapshot in live:
            assert_type(snapshot, Snapshot)
        assert_type(aiter(live).skipped, int)
    assert_type(await aiommap.follow(path, validate=is_good, on_error=told_later), LiveSnapshot)
    assert_type((await aiommap.follow(path)).value, None)
    assert_type(await aiommap.follow(path, load=None), LiveSnapshot[None])
    async with aiommap.follow(path, load=length, required=False, hub=hub) as loaded:
        assert_type(loaded, LiveSnapshot[int])
        assert_type(loaded.value, int)
        assert_type(loaded.ready, bool)
        assert_type(await loaded.wait_ready(), None)
        wider: LiveSnapshot[float] = loaded
        assert_type(wider.value, float)
    assert_type((await aiommap.follow(path, load=load_npy)).value, NDArray[Any])
    aiommap.follow(path, load=sync)  # type: ignore[arg-type]
    aiommap.follow(path, validate=sync)  # type: ignore[arg-type]
    aiommap.follow(path, check)  # type: ignore[call-overload]
    async with hub.watch(path, buffer=1, poll_interval=0.5) as changes:
        assert_type(changes, Changes)


async def folders(path: Path, hub: Hub) -> None:
    async def load(snapshot: Snapshot) -> bytes:
        return await snapshot.read(0, snapshot.size)

    def sync(snapshot: Snapshot) -> int:
        return snapshot.size

    def told(path: str, error: Exception) -> None: ...
    def told_less(error: Exception) -> None: ...

    assert_type(aiommap.follow_folder(path, load=load), Opening[LiveFolder[bytes]])
    async with aiommap.follow_folder(
        path, "*.json", load=load, required=False, prewarm=False, on_error=told, hub=hub
    ) as live:
        assert_type(live.value, Mapping[str, bytes])
        assert_type((live.ready, live.generation, live.path), tuple[bool, int, str])
        assert_type(await live.wait_ready(), None)
        async for values in live:
            assert_type(values, Mapping[str, bytes])
    aiommap.follow_folder(path)  # type: ignore[call-arg]
    aiommap.follow_folder(path, load=sync)  # type: ignore[arg-type]
    aiommap.follow_folder(path, load=load, on_error=told_less)  # type: ignore[arg-type]


async def npy_files(path: Path, hub: Hub, file: MappedFile, view: View) -> None:
    assert_type(open_npy(path, "r+", hub=hub, prewarm=True), Opening[NpyFile])
    async with open_npy(path, flush=FlushPolicy.always()) as opened:
        assert_type(opened.array, NDArray[Any])
        assert_type(opened.file, MappedFile)
    assert_type(await load_npy(file), NDArray[Any])
    assert_type(await load_npy(view), NDArray[Any])
    open_npy(path, shape=(1,))  # type: ignore[call-arg]


async def backends(path: Path, hub: Hub, file: MappedFile, snapshot: Snapshot) -> None:
    assert_type(FileBackend.open(path, size=10, hub=hub), Opening[FileBackend])
    assert_type(MappedBackend.open(path, hub=hub, prewarm=True), Opening[MappedBackend])
    any_kind: list[StorageBackend] = [
        await FileBackend.open(path),
        await MappedBackend.open(path),
        MappedBackend(file),
        MappedBackend(snapshot),
        snapshot,
    ]
    for backend in any_kind:
        assert_type(backend.size, int)
        assert_type(await backend.read_exact(0, backend.size), bytes)
        await backend.aclose()
    MappedBackend(path)  # type: ignore[arg-type]


async def opening(path: Path) -> None:
    assert_type(aiommap.open(path), Opening[MappedFile])
    assert_type(await aiommap.open(path), MappedFile)
    assert_type(await aiommap.open(3, "r+"), MappedFile)
    assert_type(await aiommap.open_memory(1, capacity=2, seal=True), MappedFile)
    async with aiommap.open(path) as file:
        assert_type(file, MappedFile)
    async with await aiommap.open(str(path), "r+") as file:
        assert_type(file, MappedFile)
    assert_type(
        await aiommap.open(
            path,
            "x+",
            size=1 << 20,
            capacity=1 << 30,
            sparse=True,
            flush=FlushPolicy.always(),
            advice=Advice.RANDOM,
            prewarm=True,
            lock=True,
            huge_pages=True,
            inline_writes=False,
        ),
        MappedFile,
    )


async def sharing_a_hub(path: Path) -> None:
    async with Hub(workers=4) as hub:
        assert_type(hub, Hub)
        assert_type(hub.open(path, "r+"), Opening[MappedFile])
        assert_type(await hub.open(path), MappedFile)
        async with hub.open(path) as file:
            assert_type(file, MappedFile)
    assert_type(await Hub().aclose(), None)


def properties(file: MappedFile) -> None:
    assert_type(file.path, str | None)
    assert_type(file.fileno(), int)
    assert_type(file.mode, str)
    assert_type(file.size, int)
    assert_type(file.capacity, int)
    assert_type(file.closed, bool)
    assert_type(file.flush_policy, FlushPolicy)
    assert_type(len(file), int)
    assert_type(aiommap.PAGE_SIZE, int)


async def reading(file: MappedFile) -> None:
    assert_type(await file.read(0, 10), bytes)
    assert_type(await file.read(True, 10), bytes)
    assert_type(file.read_nowait(0, 10), bytes)
    assert_type(await file.read_into(0, bytearray(10)), int)
    assert_type(await file.read_into(0, array("d", [0.0])), int)
    assert_type(await file.read_into(0, memoryview(bytearray(10))), int)
    assert_type(await file.read_many([(0, 10), (20, 5)]), list[bytes])
    assert_type(file.chunks(1 << 20), AsyncIterator[bytes])
    async for page in file.pages():
        assert_type(page, bytes)


async def writing(file: MappedFile) -> None:
    receipt = await file.write(0, b"data")
    assert_type(receipt, WriteReceipt)
    assert_type(await file.write(0, array("d", [1.0])), WriteReceipt)
    assert_type(await file.write_many([(0, b"one"), (8, b"two")]), WriteReceipt)
    assert_type(receipt.offset, int)
    assert_type(receipt.length, int)
    assert_type(receipt.sequence, int)
    assert_type(receipt.durable, bool)
    assert_type(await receipt.wait_durable(), None)


async def flushing(file: MappedFile, receipt: WriteReceipt) -> None:
    assert_type(await file.flush(), None)
    assert_type(await file.flush_range(0, 10), None)
    assert_type(await file.flush_range(offset=0, length=10), None)
    assert_type(await file.flush_range(receipt), None)
    assert_type(await file.start_writeback(), None)
    assert_type(FlushPolicy.never(), FlushPolicy)
    assert_type(FlushPolicy.manual(), FlushPolicy)
    assert_type(FlushPolicy.always(), FlushPolicy)


async def paging(file: MappedFile) -> None:
    def progress(done: int, total: int) -> None: ...

    assert_type(await file.prewarm(), int)
    assert_type(await file.prewarm(0, 10, write=True, progress=progress), int)
    assert_type(await file.advise(Advice.WILL_NEED, 0, 10), None)
    pinning: AbstractAsyncContextManager[None] = file.locked(0, 10)
    async with pinning as pinned:
        assert_type(pinned, None)
    found = await file.residency()
    assert_type(found, Residency)
    assert_type(found.resident, int)
    assert_type(found.total, int)
    assert_type(found.runs, tuple[tuple[int, int], ...])
    assert_type(found.fraction, float)
    assert_type(found.chart(40), str)


async def sizing_and_closing(file: MappedFile) -> None:
    assert_type(await file.resize(1 << 21), None)
    assert_type(await file.punch_hole(0, 4096), None)
    assert_type(file.statistics(), FileStatistics)
    assert_type(file.statistics().inline_reads, int)
    assert_type(file.statistics().leased, tuple[LeasedRange, ...])
    assert_type(file.statistics().leased[0].taken_at, str | None)
    assert_type(file.statistics().oldest_dirty_seconds, float | None)
    assert_type(file.statistics().flush_seconds, Distribution)
    assert_type(file.on_error(lambda error: print(error.ranges)), Subscription)
    assert_type(await file.aclose(), None)


async def viewing(file: MappedFile) -> None:
    with file.view(0, 100) as view:
        assert_type(view, View)
    assert_type(view.offset, int)
    assert_type(view.length, int)
    assert_type(view.memory, memoryview)
    assert_type(view.view(1, 2), View)
    assert_type(view.split_at(50), tuple[View, View])
    assert_type(view.carve({"header": (0, 16), "rest": (16, 4)}), dict[str, View])
    assert_type(file.carve(dict(enumerate([(0, 4), (4, 12)]))), dict[int, View])
    records = view.struct("!Ld")
    assert_type(records, Records)
    assert_type(records[0], tuple[Any, ...])
    assert_type(records[2:4], Records)
    assert_type(list(records), list[tuple[Any, ...]])
    assert_type((records.layout, records.itemsize, len(records)), tuple[str, int, int])
    records[0] = (1, 2.0)
    assert_type(view.array("<f8"), NDArray[Any])
    assert_type(file.array(np.float64, (2, -1), 8, order="F"), NDArray[Any])
    file.array("<f8", "2")  # type: ignore[arg-type]
    file.array("<f8", order="A")  # type: ignore[arg-type]
    assert_type(await view.read(0, 10), bytes)
    assert_type(view.read_nowait(0, 10), bytes)
    assert_type(await view.read_into(0, bytearray(4)), int)
    assert_type(await view.write(0, b"data"), WriteReceipt)
    assert_type(await view.read_many([(0, 1)]), list[bytes])
    receipt = await view.write_many([(0, b"data")])
    assert_type(receipt, WriteReceipt)
    assert_type(await view.flush(), None)
    assert_type(await view.flush_range(receipt), None)
    assert_type(await view.flush_range(0, 4), None)
    pinned: AbstractAsyncContextManager[None] = view.locked(0, 4)
    async with pinned:
        assert_type(await view.prewarm(), int)
    assert_type([chunk async for chunk in view.chunks(4)], list[bytes])
    assert_type([page async for page in view.pages()], list[bytes])
    assert_type(await view.residency(), Residency)
    assert_type(view.release(), None)


async def allocating(file: MappedFile, state: bytes) -> None:
    allocator = file.allocator(0, aiommap.PAGE_SIZE, end=1 << 20)
    assert_type(allocator, RangeAllocator)
    assert_type(file.allocator(state=state), RangeAllocator)
    allocated = allocator.allocate(100)
    assert_type(allocated, AllocatedRange)
    assert_type(await allocator.acquire(100), AllocatedRange)
    assert_type(allocator.claim(0, 100), AllocatedRange)
    assert_type((allocated.offset, allocated.length, allocated.end), tuple[int, int, int])
    assert_type(allocated.valid, bool)
    assert_type(allocated.split_at(50), tuple[AllocatedRange, AllocatedRange])
    assert_type(await file.write_range(allocated, bytes(100)), WriteReceipt)
    assert_type(await file.read_range(allocated), bytes)
    assert_type(allocator.free(allocated), None)
    assert_type((allocator.remaining, allocator.largest), tuple[int, int])
    assert_type(allocator.unclaimed, tuple[tuple[int, int], ...])
    assert_type(allocator.state(), bytes)
    assert_type(allocator.close(), None)
    assert_type((aiommap.align_up(5), aiommap.align_down(5, 2)), tuple[int, int])


async def watching(file: MappedFile) -> None:
    async def later(change: Change) -> None: ...

    assert_type(file.orphaned, bool)
    async with file.watch(buffer=8, poll_interval=0.1) as changes:
        assert_type(changes, Changes)
        async for change in changes:
            assert_type(change, Change)
            assert_type(change.kind, ChangeKind)
            assert_type((change.old, change.new), tuple[FileState | None, FileState | None])
    assert_type(changes.ended, bool)
    changes.end()
    changes.close()
    assert_type(file.on_change(later), Subscription)
    assert_type(file.on_change(print, on_error=print, buffer=1), Subscription)
    await file.refresh()
    await file.reopen(discard=True)


async def sharing(file: MappedFile, view: View) -> None:
    word, wide = file.atomic_u32(0), view.atomic_u64(8)
    assert_type((word, wide), tuple[AtomicU32, AtomicU64])
    assert_type(file.atomic_u32_array(0, 4), AtomicU32Array)
    array = file.atomic_u64_array(0, 4)
    assert_type(array, AtomicU64Array)
    assert_type((array[0], len(array)), tuple[AtomicU64, int])
    assert_type((word.load(), wide.fetch_add(1, order="relaxed")), tuple[int, int])
    assert_type(array.swap(0, 1), int)
    assert_type(word.store(1), None)
    assert_type(word.compare_exchange(0, 1), tuple[bool, int])
    assert_type(await word.wait(0, timeout=1.5), int)
    assert_type(word.notify(3), int)
    locking: AbstractAsyncContextManager[None] = file.file_lock(0, 8, shared=True, timeout=1)
    async with locking, AsyncLock(file, 0) as lock:
        assert_type(lock, AsyncLock)
    assert_type(await lock.acquire(timeout=1), Literal[True])
    assert_type((lock.owner_died, lock.locked, lock.offset), tuple[bool, bool, int])


async def logging(log: Log, record: LogRecord) -> None:
    opening: Opening[Log] = Log.open("folder", "r", retain_bytes=None)
    async with opening as reader:
        assert_type(reader, Log)
    receipt = await log.append(b"data")
    assert_type(receipt, LogReceipt)
    assert_type(await log.append_many([b"a", bytearray(b"b")]), LogReceipt)
    assert_type((receipt.sequence, receipt.count, receipt.durable), tuple[int, int, bool])
    assert_type(await receipt.wait_durable(), None)
    async for found in log.read(5):
        assert_type(found, LogRecord)
    async for found in log.tail(durable=True):
        assert_type((found.sequence, found.data, found.life), tuple[int, bytes, int])
    assert_type((log.first, log.last, log.durable), tuple[int, int, int])
    assert_type(log.recovered, Recovered | None)
    assert_type(await log.segments(), tuple[LogSegment, ...])
    assert_type(log.statistics(), LogStatistics)
    await log.discard("all")  # type: ignore[arg-type]
    log.first = 5  # type: ignore[misc]


def errors(bounds: OutOfBoundsError, fault: MappingFaultError, flush: FlushError) -> None:
    roots: list[MappedFileError] = [bounds, fault, flush]
    systems: list[OSError] = [fault, flush]
    values: list[ValueError] = [bounds]
    assert_type((len(roots), len(systems), len(values)), tuple[int, int, int])
    assert_type((bounds.offset, bounds.length, bounds.limit), tuple[int, int, int])
    assert_type(fault.copied, int)
    assert_type(fault.size, int | None)
    assert_type(flush.ranges, tuple[tuple[int, int], ...])


async def injected(file: MappedFile, snapshot: Snapshot, inject: testing.InjectFault) -> None:
    with testing.failing_flush(file, 5) as failing, testing.full_disk("folder") as full:
        assert_type((failing, full.hits), tuple[testing.InjectedFault, int])
    with testing.slow_disk(snapshot, seconds=1, only="read") as disk:
        assert_type(await disk.wait_stalled(2), None)
        disk.release(1)
        assert_type(disk.stalled, int)
    assert_type(inject(testing.slow_disk(file)), testing.SlowDisk)
    assert_type(inject(testing.replaced_file(file, b"other")), None)
    testing.slow_disk(file, only="sync")  # type: ignore[arg-type]
    testing.failing_flush(snapshot)  # type: ignore[arg-type]


async def refused(file: MappedFile, receipt: WriteReceipt, policy: FlushPolicy) -> None:
    await file.flush_range(0)  # type: ignore[call-overload]
    await file.flush_range(receipt, 10)  # type: ignore[call-overload]
    await file.flush_range(offset=receipt)  # type: ignore[call-overload]
    await file.write(0, "text")  # type: ignore[arg-type]
    await file.read(0.5, 1)  # type: ignore[arg-type]
    await file.advise("random")  # type: ignore[arg-type]
    await file.prewarm(progress=str.upper)  # type: ignore[arg-type]
    aiommap.open("file", writable=True)  # type: ignore[call-arg]
    policy.due_bytes = 5  # type: ignore[misc]
    file.size = 10  # type: ignore[misc]
    receipt.durable = True  # type: ignore[misc]
    file.allocator(0).allocate(100).offset = 5  # type: ignore[misc]
    with aiommap.open("file"):  # type: ignore[attr-defined]
        pass
