"""RemoteFolder: objects below an address, and names that would lead elsewhere."""

from __future__ import annotations

import pytest

from aiommap.remote import RemoteFolder
from tests.support.objects import DATA, Objects

pytestmark = pytest.mark.anyio


async def test_objects_below_a_url(make_cache, nginx):
    for name in ("below", "below two é", "odd?name#1%2e"):
        nginx.put(f"deep/{name}", name.encode())
    async with make_cache() as cache:
        for address in (nginx.url("deep"), nginx.url("deep/")):
            folder = RemoteFolder(cache, address)
            for name in ("below", "below two é", "odd?name#1%2e"):
                async with folder.open(name) as snapshot:
                    assert await snapshot.read_exact(0, snapshot.size) == name.encode()
            with pytest.raises(FileNotFoundError):
                await folder.open("missing")


async def test_objects_below_a_folder_of_files(make_cache, tmp_path):
    pytest.importorskip("obstore")
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "c#d").write_bytes(DATA)
    async with make_cache() as cache:
        folder = RemoteFolder(cache, (tmp_path / "a b").as_uri())
        async with folder.open("c#d") as snapshot:
            assert await snapshot.read_exact(0, len(DATA)) == DATA


@pytest.mark.parametrize("name", ["", "/x", "x/", "a//b", "../x", "a/../../x", ".", "a\0b"])
async def test_names_that_lead_elsewhere_are_refused(make_cache, name):
    async with make_cache() as cache:
        with pytest.raises(ValueError, match="names no object"):
            RemoteFolder(cache, "s3://bucket/prefix").open(name)


@pytest.mark.parametrize(
    "address", ["bucket/prefix", "https://host/x?sig=s3cret", "https://host/x#y"]
)
async def test_addresses_that_take_no_names_are_refused(make_cache, address):
    async with make_cache() as cache:
        with pytest.raises(ValueError, match="no address") as caught:
            RemoteFolder(cache, address)
    assert "s3cret" not in str(caught.value)


async def test_arguments_that_cannot_be_meant(make_cache, objects):
    async with make_cache() as cache:
        for wrong in ({"validator": "hope"}, {"max_age": float("nan")}):
            with pytest.raises(ValueError, match=r"hope|nan"):
                RemoteFolder(cache, "s3://bucket", **wrong)
        with pytest.raises(TypeError, match="RemoteCache"):
            RemoteFolder("s3://bucket", cache)
        with pytest.raises(TypeError, match="function"):
            RemoteFolder(cache, 7)


async def test_validator_is_passed_on(make_cache):
    objects = Objects(DATA, etag=None)
    async with make_cache() as cache:
        folder = RemoteFolder(cache, lambda _: objects, validator="none")
        async with folder.open("x") as snapshot:
            assert await snapshot.read_exact(3, 5) == DATA[3:8]


async def test_repr_keeps_secrets(make_cache):
    async with make_cache() as cache:
        assert "pass" not in repr(RemoteFolder(cache, "https://user:pass@host/x"))
