"""Snapshots as file objects, read by the standard library and by packages in wide use."""

from __future__ import annotations

import copy
import csv
import gc
import io
import os
import pickle
import random
import threading
import warnings
import zipfile
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import trio
import trio.testing

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import Snapshot

pytestmark = pytest.mark.anyio


async def in_thread(function, path):
    """Call a function with a snapshot's file in a worker thread."""
    async with Snapshot.open(path) as s:
        with s.file() as file:
            return await anyio.to_thread.run_sync(function, file)


async def test_reads_like_the_file_itself(path):
    def compare(file):
        chosen = random.Random(7)
        size = file.size
        with open(path, "rb", buffering=0) as real:
            for _ in range(500):
                whence = chosen.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END))
                low = {os.SEEK_SET: 0, os.SEEK_CUR: -real.tell(), os.SEEK_END: -size}[whence]
                offset = chosen.randint(low, low + size + PAGE)
                assert file.seek(offset, whence) == real.seek(offset, whence)
                count = chosen.choice((-1, 0, 1, PAGE, 3 * PAGE, size))
                if chosen.random() < 0.5:
                    assert file.read(count) == real.read(count)
                else:
                    ours, theirs = bytearray(abs(count)), bytearray(abs(count))
                    assert file.readinto(ours) == real.readinto(theirs)
                    assert ours == theirs
                assert file.tell() == real.tell()

    await in_thread(compare, path)


async def test_is_a_read_only_binary_file(path):
    def look(file):
        assert isinstance(file, io.RawIOBase)
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert (file.mode, file.name, file.path) == ("rb", str(path), str(path))
        with pytest.raises(ValueError, match="seek to -1"):
            file.seek(-1)
        with pytest.raises(ValueError, match="whence is 9"):
            file.seek(0, 9)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
        assert os.fstat(file.fileno()).st_ino == path.stat().st_ino
        assert "at 0 of" in repr(file)
        file.close()
        file.close()
        with pytest.raises(ValueError, match="closed file"):
            file.read()

    await in_thread(look, path)


async def test_loop_is_not_kept_waiting(path):
    async with Snapshot.open(path) as s:
        with s.file() as file:
            with pytest.raises(RuntimeError, match="read it in a worker thread"):
                file.read(1)
            assert await anyio.to_thread.run_sync(file.read, 1) == b"A"


async def test_holds_the_snapshot_until_closed(path):
    s = await Snapshot.open(path)
    file = s.file()
    async with anyio.create_task_group() as group:
        group.start_soon(s.aclose)
        await anyio.wait_all_tasks_blocked()
        assert not s.closed
        with pytest.raises(anyio.ClosedResourceError, match="is closed"):
            s.file()
        assert await anyio.to_thread.run_sync(file.read, 2) == b"AA"
        await anyio.to_thread.run_sync(file.close)
    assert s.closed


async def test_copy_is_refused(path):
    async with Snapshot.open(path) as s:
        with s.hold(), s.file() as file:
            for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied or pickled: make another"):
                    duplicate(file)


async def test_truncated_file_is_a_typed_error(path, outside):
    async with Snapshot.open(path) as s:
        with s.file() as file:
            outside(path, PAGE)
            with pytest.raises(aiommap.MappingFaultError, match=f"shrank to {PAGE} bytes"):
                await anyio.to_thread.run_sync(file.read)
            assert file.tell() == 0
            assert await anyio.to_thread.run_sync(file.read, PAGE) == b"A" * PAGE


async def test_standard_library_reads_it(tmp_path):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.csv", "a,b\n1,2\n3,4\n")

    def read(file):
        with zipfile.ZipFile(file) as archive, archive.open("rows.csv") as rows:
            return list(csv.reader(io.TextIOWrapper(rows)))

    assert await in_thread(read, path) == [["a", "b"], ["1", "2"], ["3", "4"]]


async def test_pandas_reads_it(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i * i}\n" for i in range(1000)))
    frame = await in_thread(pandas.read_csv, path)
    assert frame["b"].sum() == sum(i * i for i in range(1000))


async def test_pyarrow_reads_it(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    table = pyarrow.table({"a": list(range(10_000)), "b": [str(i) for i in range(10_000)]})
    parquet.write_table(table, path)
    assert (await in_thread(parquet.read_table, path)).equals(table)


async def test_zarr_and_fsspec_read_it(tmp_path):
    zarr = pytest.importorskip("zarr")
    fsspec = pytest.importorskip("fsspec")
    numpy = pytest.importorskip("numpy")
    wrapper = pytest.importorskip("fsspec.implementations.asyn_wrapper")
    path = tmp_path / "array.zip"
    data = numpy.arange(100 * 100).reshape(100, 100)
    with zarr.storage.ZipStore(path, mode="w") as store:
        zarr.create_array(store, shape=data.shape, chunks=(10, 100), dtype=data.dtype)[:] = data

    def read(file):
        archive = fsspec.filesystem("zip", fo=file, skip_instance_cache=True)
        system = wrapper.AsyncFileSystemWrapper(archive, asynchronous=True)
        store = zarr.storage.FsspecStore(system, read_only=True, path="")
        return zarr.open_array(store, mode="r")[:]

    found = await in_thread(read, path)
    assert numpy.array_equal(found, data)


def test_closed_while_trio_ends(tmp_path):
    """No task can be started then, so what the file held becomes garbage."""
    path = tmp_path / "f"
    path.write_bytes(b"x")
    kept = []

    async def main():
        snapshot = await Snapshot.open(path)
        file = snapshot.file()
        with trio.move_on_after(0):
            await snapshot.aclose()  # waits for the file

        async def close_at_the_end():
            try:
                yield
            finally:
                thread = threading.Thread(target=file.close)
                thread.start()
                thread.join()
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()

        generator = close_at_the_end()
        kept.append(generator)
        await generator.__anext__()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        trio.run(main)
        del main
        kept.clear()
        gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()
