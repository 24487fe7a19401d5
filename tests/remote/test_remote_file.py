"""``RemoteSnapshot.file`` through libraries that read files and know no event loop."""

from __future__ import annotations

import io
import zipfile

import anyio
import pytest

from tests.support.remote import BLOCK, content, opened

pytestmark = pytest.mark.anyio


async def in_thread(function, *arguments):
    return await anyio.to_thread.run_sync(function, *arguments)


@pytest.fixture
def served(tmp_path, nginx, proxy):
    """A function that serves bytes as an object, and opens it through the proxy."""

    def serve(data, key):
        nginx.put(key, data)
        return opened(tmp_path / "cache", nginx.store(proxy.port), key)

    return serve


async def test_it_is_a_binary_file(served):
    expected = content("old")
    async with served(expected, "binary") as (_, snapshot):
        with snapshot.file() as file:
            assert isinstance(file, io.RawIOBase)
            assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
            assert await in_thread(file.read, 10) == expected[:10]
            assert file.seek(-100, io.SEEK_END) == len(expected) - 100
            assert await in_thread(file.read) == expected[-100:]
            file.seek(3 * BLOCK - 1)
            buffer = bytearray(2 * BLOCK)
            assert await in_thread(file.readinto, buffer) == len(buffer)
            assert buffer == expected[3 * BLOCK - 1 : 5 * BLOCK - 1]
            with pytest.raises(RuntimeError, match="thread"):
                file.read(1)


async def test_zipfile(served):
    packed = io.BytesIO()
    data = content("old", 40 * BLOCK)
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(8):
            archive.writestr(f"part-{number}", data[number * 5 * BLOCK :][: 5 * BLOCK])
    async with served(packed.getvalue(), "archive.zip") as (_, snapshot):

        def read():
            with snapshot.file() as file, zipfile.ZipFile(file) as archive:
                return archive.read("part-6")

        assert await in_thread(read) == data[30 * BLOCK : 35 * BLOCK]


async def test_pandas_and_pyarrow(served, proxy):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({name: range(20_000) for name in ("a", "b", "c", "d")})
    packed = io.BytesIO()
    frame.to_parquet(packed, row_group_size=1000, compression=None)
    async with served(packed.getvalue(), "frame.parquet") as (_, snapshot):

        def read():
            with snapshot.file() as file:
                return pandas.read_parquet(file, columns=["b"])

        assert (await in_thread(read))["b"].tolist() == frame["b"].tolist()
        assert proxy.sent < len(packed.getvalue())  # not all of it was fetched


async def test_zarr(served, tmp_path):
    zarr = pytest.importorskip("zarr")
    numpy = pytest.importorskip("numpy")
    made = tmp_path / "array.zip"
    values = numpy.arange(100_000).reshape(100, 1000)
    with zarr.storage.ZipStore(made, mode="w") as store:
        array = zarr.create_array(store, shape=values.shape, chunks=(10, 1000), dtype=values.dtype)
        array[:] = values
    async with served(made.read_bytes(), "array.zip") as (_, snapshot):

        def read():
            with snapshot.file() as file, zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.endswith("c/3/0")]
                return archive.read(names[0])

        with zipfile.ZipFile(made) as archive:
            assert await in_thread(read) == archive.read("c/3/0")
