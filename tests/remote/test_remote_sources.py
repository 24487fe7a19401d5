"""Sources over real servers and over a faulty one: exact bytes and states, or an error."""

from __future__ import annotations

import dataclasses
import uuid

import pytest

import aiommap
from aiommap.remote import ObstoreSource, RemoteError
from tests.support.fault_proxy import Fault, always, cut, each, etag, once
from tests.support.internals import source_of_url

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def key():
    return f"source-{uuid.uuid4().hex}"


class TestServers:
    """Every server in turn; all but ``rclone`` serve ranges."""

    @pytest.fixture
    def source(self, server, key):
        server.put(key, CONTENT)
        return ObstoreSource(server.store(), key)

    def test_stat(self, source):
        state = source.stat(None)
        assert state.size == len(CONTENT)
        assert state.etag
        assert source.stat(state) is None

    def test_fetch(self, source, server):
        state = source.stat(None)
        if server.name == "rclone":
            with pytest.raises((RemoteError, aiommap.UnsupportedError)):
                source.fetch(5, 1000, state)
            return
        for start, end in ((0, 1), (5, 1000), (len(CONTENT) - 1, len(CONTENT)), (0, len(CONTENT))):
            data, found = source.fetch(start, end, state)
            assert bytes(memoryview(data)) == CONTENT[start:end]
            assert (found.size, found.etag) == (state.size, state.etag)

    def test_overwritten(self, source, server, key):
        state = source.stat(None)
        server.put(key, CONTENT[::-1])
        found = source.stat(state)
        assert found is not None
        assert found.etag != state.etag
        unversioned = dataclasses.replace(state, version=None)
        if server.name == "rclone":
            return
        try:
            data, answered = source.fetch(0, 10, unversioned)
        except aiommap.StaleSnapshotError:
            return
        # This server ignores If-Match: the state in its response tells of the change.
        assert server.name == "fake-gcs"
        assert (answered.etag, bytes(memoryview(data))) == (found.etag, CONTENT[::-1][:10])

    def test_deleted(self, source, server, key):
        state = source.stat(None)
        server.delete(key)
        with pytest.raises(FileNotFoundError):
            source.stat(None)
        if state.version is None:
            with pytest.raises((FileNotFoundError, aiommap.StaleSnapshotError)):
                source.fetch(0, 10, state)


def test_versions(moto, key):
    moto.keep_versions()
    moto.put(key, CONTENT)
    source = ObstoreSource(moto.store(), key)
    old = source.stat(None)
    moto.put(key, CONTENT[::-1])
    data, found = source.at_version(old.version).fetch(0, 100, old)
    assert (bytes(memoryview(data)), found.etag) == (CONTENT[:100], old.etag)
    assert source.at_version(old.version).stat(None).version == old.version


class TestFaults:
    @pytest.fixture
    def source(self, nginx, proxy, key):
        nginx.put(key, CONTENT)
        return ObstoreSource(nginx.store(proxy.port), key)

    @pytest.fixture
    def state(self, source):
        return source.stat(None)

    @pytest.mark.parametrize("fault", [cut(1000), cut(1000, reset=False), Fault(status=503)])
    def test_retries_mend(self, source, state, proxy, fault):
        proxy.rule = once(fault, times=2)
        data, found = source.fetch(0, 5000, state)
        assert bytes(memoryview(data)) == CONTENT[:5000]
        assert found.etag == state.etag

    @pytest.mark.parametrize(
        "fault",
        {
            "reset": cut(1000),
            "fin": cut(1000, reset=False),
            "no-length": Fault(no_length=True, cut_after=1000),
            "status": Fault(status=503),
            "range-ignored": Fault(ignore=("range",)),
            "other-range": Fault(headers={"content-range": "bytes 1-5000/102400"}),
            "short-range": Fault(headers={"content-range": "bytes 0-99/102400"}),
            "no-content-range": Fault(headers={"content-range": None}),
        }.items(),
        ids=lambda item: item[0],
    )
    def test_lasting_faults_are_errors(self, source, state, proxy, fault):
        proxy.rule = always(fault[1])
        with pytest.raises((RemoteError, aiommap.UnsupportedError)):
            source.fetch(0, 5000, state)

    def test_status_is_told(self, source, state, proxy):
        proxy.rule = always(Fault(status=503))
        with pytest.raises(RemoteError) as caught:
            source.fetch(0, 5000, state)
        assert caught.value.status == 503
        proxy.rule = each(Fault(status=403))
        with pytest.raises(PermissionError):
            source.fetch(0, 5000, state)
        with pytest.raises(PermissionError):
            source.stat(None)

    @pytest.mark.parametrize("said", ['"other"', 'W/"weak"', None])
    def test_etag_of_the_response_is_told(self, source, state, proxy, said):
        proxy.rule = each(etag(said))
        assert source.fetch(0, 10, state)[1].etag == said
        assert source.stat(None).etag == said


@pytest.mark.parametrize("query", ["", "?signature=of-it&x=1"])
def test_urls(nginx, proxy, key, query):
    nginx.put(f"a folder/{key}", CONTENT)
    source = source_of_url(f"http://user:word@127.0.0.1:{proxy.port}/a%20folder/{key}{query}")
    # A hash of the query is part of the address.
    assert source.url.partition(";")[0] == f"http://127.0.0.1:{proxy.port}/a%20folder/{key}"
    assert "of-it" not in source.url
    state = source.stat(None)
    assert bytes(memoryview(source.fetch(0, 99, state)[0])) == CONTENT[:99]
    assert {request.path for request in proxy.seen} == {f"/a%20folder/{key}{query}"}
