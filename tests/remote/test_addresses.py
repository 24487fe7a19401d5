"""Addresses: two objects that are not the same never have one, and an address has no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, S3Store

from aiommap import UnsupportedError
from aiommap.remote import FsspecSource, ObstoreSource, RemoteCache
from tests.support.internals import source_of_url

CLIENT = {"allow_http": True}
RETRY = {"max_retries": 0}
ACCOUNT = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
KEYS = {"access_key_id": "dummy", "secret_access_key": "dummy", "region": "x"}
AZURE = {"account_name": "acct", "account_key": "ZHVtbXk="}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment that names no store."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "AZURITE_", "SERVICE_ACCOUNT")):
            monkeypatch.delenv(name)
    return monkeypatch


def s3(**options):
    return S3Store("bucket", **KEYS, client_options=CLIENT, retry_config=RETRY, **options)


def gcs(**options):
    key = json.dumps(ACCOUNT | options.pop("account", {}))
    options = {"service_account_key": key, **options}
    return GCSStore("bucket", client_options=CLIENT, retry_config=RETRY, **options)


def azure(**options):
    return AzureStore("bucket", **AZURE, client_options=CLIENT, retry_config=RETRY, **options)


@pytest.mark.parametrize(
    ("make", "variables"),
    {
        "s3": (lambda at: s3(endpoint=at), {}),
        "s3-prefix": (lambda at: s3(endpoint=at, prefix="a/b#1"), {}),
        "s3-env": (lambda at: s3(), {"AWS_ENDPOINT_URL": "{}"}),
        "s3-env-short": (lambda at: s3(), {"AWS_ENDPOINT": "{}"}),
        "s3-env-own": (lambda at: s3(endpoint=at + "9"), {"AWS_ENDPOINT_URL_S3": "{}"}),
        "gcs": (lambda at: gcs(base_url=at), {}),
        "gcs-env": (lambda at: gcs(), {"GOOGLE_BASE_URL": "{}"}),
        "gcs-account": (lambda at: gcs(account={"gcs_base_url": at}), {}),
        "azure": (lambda at: azure(endpoint=at), {}),
        "azure-env": (lambda at: azure(), {"AZURE_STORAGE_ENDPOINT": "{}"}),
        "azure-env-short": (lambda at: azure(), {"AZURE_ENDPOINT": "{}"}),
        "azure-emulator": (lambda at: azure(use_emulator=True), {"AZURITE_BLOB_STORAGE_URL": "{}"}),
        "http": (lambda at: HTTPStore(at, client_options=CLIENT, retry_config=RETRY), {}),
        "http-base": (lambda at: HTTPStore(at + "/d", client_options=CLIENT), {}),
        "http-slash": (lambda at: HTTPStore(at + "/d/", client_options=CLIENT), {}),
    }.values(),
    ids=lambda value: None,
)
def test_address_is_what_the_engine_asks_for(proxy, environment, make, variables):
    at = f"http://127.0.0.1:{proxy.port}"
    for name, value in variables.items():
        environment.setenv(name, value.format(at))
    source = ObstoreSource(make(at), "k/c d")
    with pytest.raises(FileNotFoundError):
        source.stat(None)
    asked = proxy.seen[0].path.partition("?")[0]
    assert source.url == at + asked.replace("%2F", "/")  # GCS


def test_settings_that_do_not_agree_are_refused(environment):
    environment.setenv("AWS_ENDPOINT", "http://127.0.0.1:8")
    environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnsupportedError, match=r"AWS_ENDPOINT_URL and AWS_ENDPOINT .* unset"):
        ObstoreSource(s3(), "k")
    assert ObstoreSource(s3(endpoint="http://h"), "k").url == "http://h/bucket/k"


def test_account_in_a_file_names_the_endpoint(environment, tmp_path):
    path = tmp_path / "account"
    path.write_text(json.dumps(ACCOUNT | {"gcs_base_url": "http://127.0.0.1:9"}))
    environment.setenv("GOOGLE_SERVICE_ACCOUNT", str(path))
    store = GCSStore("bucket", client_options=CLIENT)
    assert ObstoreSource(store, "k").url == "http://127.0.0.1:9/bucket/k"


def test_url_is_read_by_the_environment_of_now(environment):
    """A store is kept for further URLs, but not if the environment names another server by now."""
    for name, value in (("KEY_ID", "dummy"), ("REGION", "x"), ("ALLOW_HTTP", "true")):
        environment.setenv(f"AWS_{name}", value)
    sources = []
    for port in (8, 9, 9):
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        sources.append(source_of_url("s3://bucket/k"))
    assert [s.url for s in sources] == [f"http://127.0.0.1:{n}/bucket/k" for n in (8, 9, 9)]
    assert sources[0]._store is not sources[1]._store
    assert sources[1]._store is sources[2]._store


@pytest.mark.parametrize(
    "store",
    [
        S3Store("bucket", **KEYS, prefix="a#1"),
        GCSStore("bucket", service_account_key=json.dumps(ACCOUNT)),
        AzureStore("bucket", **AZURE),
    ],
    ids=lambda store: type(store).__name__,
)
def test_address_is_a_url_of_the_object(environment, store):
    environment.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE["account_key"])
    environment.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(ACCOUNT))
    source = ObstoreSource(store, "k/ä@b#c?d")
    assert source_of_url(source.url).url == source.url


def test_address_is_a_url_of_a_file(tmp_path):
    (tmp_path / "d#1").mkdir()
    (tmp_path / "d#1" / "a b@").write_bytes(b"bytes")
    source = ObstoreSource(LocalStore(tmp_path / "d#1"), "a b@")
    assert source.url == f"file://{tmp_path}/d%231/a%20b%40"
    again = source_of_url(source.url)
    assert (again.url, again.stat(None).size) == (source.url, 5)


def test_prefixes_that_differ_only_behind_a_sharp_are_two(tmp_path):
    for name in ("d#1", "d#2"):
        (tmp_path / name).mkdir()
    one, two = (ObstoreSource(LocalStore(tmp_path / name), "k").url for name in ("d#1", "d#2"))
    assert one != two


@pytest.mark.parametrize("key", ["/a", "a/", "a//b", "//a", "a/b/", "a/../b", "./a", "/"])
def test_key_that_obstore_takes_for_another_is_refused(key):
    for store in (s3(), HTTPStore("http://127.0.0.1:9")):
        with pytest.raises(ValueError, match="no key that obstore can ask for"):
            ObstoreSource(store, key)


@pytest.mark.parametrize(
    "url",
    ["s3://bucket//a", "s3://bucket/a//b", "s3://bucket/a/", "s3://bucket/%2Fa", "s3://bucket/a?b"],
)
def test_url_of_such_a_key_is_refused(environment, url):
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION"):
        environment.setenv(f"AWS_{name}", "dummy")
    with pytest.raises(ValueError, match="key"):
        source_of_url(url)


@pytest.mark.parametrize("url", ["file:relative", "file://folder/file"])
def test_url_of_a_relative_path_is_refused(url):
    with pytest.raises(ValueError, match="names no file"):
        source_of_url(url)


def test_queries_that_may_pick_an_object_differ():
    queries = [
        "",
        "?x",
        "?x=",
        "?x=1",
        "?policy=x",
        "?token=1",
        "?token=2",
        "?sig=1",
        "?sr=b&sig=1",
    ]
    urls = {source_of_url(f"http://127.0.0.1:9/a{query}").url for query in queries}
    assert len(urls) == len(queries)


def archive(folder, name):
    path = folder / f"{name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("table", name * 5000)
    return fsspec.filesystem("zip", fo=str(path))


def folder_of(folder, name):
    path = folder / name
    path.mkdir()
    (path / "table").write_text(name * 5000)
    return DirFileSystem(str(path), fs=fsspec.filesystem("file"))


@pytest.mark.anyio
@pytest.mark.parametrize("make", [archive, folder_of])
async def test_each_file_system_reads_its_own_bytes(tmp_path, make):
    async with RemoteCache(tmp_path / "cache") as cache:
        for name in ("a", "b"):
            source = FsspecSource(make(tmp_path, name), "table")
            async with cache.open(source, validator="none") as s:
                assert await s.read_exact(0, s.size) == name.encode() * 5000


class Made(fsspec.AbstractFileSystem):
    """A file system whose own addresses say nothing about where it is, as of ftp, hdfs, github."""

    protocol = "made"
    cachable = False


def address(fs, path="p"):
    return FsspecSource(fs, path).url


def test_options_tell_file_systems_apart():
    options = [{}, {"host": "a"}, {"host": "b"}, {"host": "a", "password": "hunter2"}]
    options += [{"inner": Made(host=host)} for host in "ab"]
    urls = [address(Made(**given)) for given in options]
    assert len(set(urls)) == len(urls)
    assert urls == [address(Made(**given)) for given in options]
    assert "hunter2" not in " ".join(urls)


def test_address_of_a_file_system_is_the_same_in_another_process(tmp_path):
    program = (
        "import fsspec, sys; from aiommap.remote import FsspecSource; "
        "print(FsspecSource(fsspec.filesystem('zip', fo=sys.argv[1]), 'table').url)"
    )
    fs = archive(tmp_path, "a")
    found = subprocess.run(
        [sys.executable, "-c", program, "a.zip"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == address(fs, "table")


@pytest.mark.parametrize(
    "options",
    [{"client": object()}, {"fo": "memory://a.zip"}, {"target_protocol": "memory"}],
    ids=lambda options: next(iter(options)),
)
def test_file_system_that_cannot_be_told_has_an_address_of_its_own(options):
    one, two = Made(**options), Made(**options)
    assert address(one) != address(two)
    assert address(one) == address(one)


def test_memory_of_a_process_is_its_own():
    fs = fsspec.filesystem("memory")
    program = (
        "import fsspec; from aiommap.remote import FsspecSource; "
        "print(FsspecSource(fsspec.filesystem('memory'), '/k').url)"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert found.stdout.startswith("memory://")
    assert found.stdout.strip() != address(fs, "/k") == address(fs, "/k")


def test_paths_of_a_file_system_that_differ_behind_a_mark_are_two():
    fs = fsspec.filesystem("file")
    assert len({address(fs, f"/d/{name}") for name in ("a", "a#1", "a?1", "a?2")}) == 4


def test_s3_of_fsspec_is_named_by_its_endpoint(environment):
    pytest.importorskip("s3fs")
    options = {"key": "dummy", "secret": "dummy", "skip_instance_cache": True}
    make = lambda **more: fsspec.filesystem("s3", **options, **more)  # noqa: E731
    assert address(make(), "b/k") == "s3://b/k"
    assert address(make(endpoint_url="http://h:1/"), "b/k") == "http://h:1/b/k"
    assert address(make(client_kwargs={"endpoint_url": "http://h"}), "b/k") == "http://h/b/k"
    environment.setenv("AWS_ENDPOINT_URL", "http://e")
    assert address(make(), "b/k") == "http://e/b/k"
    environment.setenv("AWS_PROFILE", "one")
    one = address(make(), "b/k")
    environment.setenv("AWS_PROFILE", "two")
    assert len({one, address(make(), "b/k"), "http://e/b/k"}) == 3
