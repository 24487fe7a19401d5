"""Servers, of which one of each kind serves all tests of a process, and a fault proxy."""

from __future__ import annotations

import pytest

from aiommap.remote import RemoteCache
from tests.support import remote_servers
from tests.support.fault_proxy import fault_proxy
from tests.support.objects import BLOCK, DATA, Objects


@pytest.fixture(scope="session")
def started(tmp_path_factory):
    """Start a server of a kind on its first use; all servers are stopped after the last test."""
    running = {}

    def start(kind):
        if kind not in running:
            running[kind] = remote_servers.start(kind, tmp_path_factory.mktemp(kind.name))
        return running[kind]

    yield start
    for server in running.values():
        server.stop()


@pytest.fixture
def nginx(started):
    return started(remote_servers.Nginx)


@pytest.fixture
def moto(started):
    return started(remote_servers.Moto)


@pytest.fixture(params=remote_servers.KINDS, ids=lambda kind: kind.name)
def server(request, started):
    """Each server in turn."""
    return started(request.param)


@pytest.fixture
def proxy(nginx):
    """A fault proxy in front of nginx."""
    with fault_proxy(nginx.port) as made:
        yield made


@pytest.fixture
def objects():
    """An object of eleven blocks, in a store of its own."""
    return Objects(DATA)


@pytest.fixture
def make_cache(tmp_path):
    """Make a cache of small blocks in a folder of its own."""

    def make(**options):
        options = {"block_size": BLOCK, "request_size": 4 * BLOCK, "min_free": 0.0, **options}
        return RemoteCache(options.pop("folder", tmp_path / "cache"), **options)

    return make
