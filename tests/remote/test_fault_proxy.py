"""The fault proxy makes the faults that it is told to make, and the engine meets them."""

from __future__ import annotations

import http.client
import os
import threading

import obstore
import pytest

from tests.support.fault_proxy import Fault, Gate, always, cut, each, etag, once
from tests.support.server_processes import request

CONTENT = os.urandom(100_000)
RANGE = {"Range": "bytes=100-299"}


@pytest.fixture
def key(nginx):
    nginx.put("proxied", CONTENT)
    return "proxied"


def test_requests_pass(proxy, key):
    status, headers, body = request(proxy.port, "GET", f"/{key}", headers=RANGE)
    assert (status, body) == (206, CONTENT[100:300])
    assert headers["content-range"] == f"bytes 100-299/{len(CONTENT)}"
    assert request(proxy.port, "HEAD", f"/{key}")[1]["etag"] == headers["etag"]
    assert [seen.method for seen in proxy.seen] == ["GET", "HEAD"]
    assert (proxy.ranges, proxy.sent) == ([(100, 300)], 200)
    proxy.forget()
    assert (proxy.seen, proxy.sent) == ([], 0)


def test_connections_are_kept(proxy, key):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    for _ in range(3):
        connection.request("GET", f"/{key}")
        assert connection.getresponse().read() == CONTENT
    connection.close()


def test_bodies_are_cut(proxy, key):
    proxy.rule = once(cut(1000, reset=False))
    with pytest.raises(http.client.IncompleteRead) as caught:
        request(proxy.port, "GET", f"/{key}")
    assert caught.value.partial == CONTENT[:1000]
    proxy.rule = once(cut(1000))
    with pytest.raises(ConnectionResetError):
        request(proxy.port, "GET", f"/{key}")
    assert request(proxy.port, "GET", f"/{key}")[2] == CONTENT


def test_lengths_are_withheld(proxy, key):
    proxy.rule = always(Fault(no_length=True, cut_after=1000))
    _, headers, body = request(proxy.port, "GET", f"/{key}")
    assert "content-length" not in headers
    assert body == CONTENT[:1000]


def test_statuses_are_ours(proxy, key):
    proxy.rule = once(Fault(status=503), times=2)
    found = [request(proxy.port, "GET", f"/{key}")[0] for _ in range(3)]
    assert found == [503, 503, 200]
    proxy.rule = each(Fault(status=403))
    assert request(proxy.port, "HEAD", f"/{key}")[0] == 403


def test_headers_are_changed(proxy, key):
    proxy.rule = always(Fault(ignore=("range",)))
    assert request(proxy.port, "GET", f"/{key}", headers=RANGE)[:3:2] == (200, CONTENT)
    proxy.rule = always(etag('"other"'))
    refused = RANGE | {"If-Match": '"none of these"'}
    status, headers, body = request(proxy.port, "GET", f"/{key}", headers=refused)
    assert (status, headers["etag"], body) == (206, '"other"', CONTENT[100:300])
    proxy.rule = always(etag(None))
    assert "etag" not in request(proxy.port, "GET", f"/{key}")[1]
    proxy.rule = always(Fault(body=b"other"))
    assert request(proxy.port, "GET", f"/{key}")[2] == b"other".ljust(len(CONTENT), b"\0")


def test_gates_hold(proxy, key):
    gate = Gate()
    proxy.rule = once(Fault(gate=gate))
    found = []
    reader = threading.Thread(
        target=lambda: found.append(request(proxy.port, "GET", f"/{key}")[2]), daemon=True
    )
    reader.start()
    assert gate.reached()
    assert not found
    gate.open()
    reader.join(20)
    assert found == [CONTENT]


def test_stalls_and_trickles(proxy, key):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=0.2)
    for fault in (Fault(stall_after=10), Fault(trickle=0.15)):
        proxy.rule = always(fault)
        connection.request("GET", f"/{key}")
        answer = connection.getresponse()
        assert answer.read(10 if fault.trickle is None else 1)
        if fault.trickle is None:
            with pytest.raises(TimeoutError):
                answer.read(1)
        connection.close()


def test_engine_goes_through(proxy, nginx, key):
    """The engine by itself repairs a broken response, and does not notice another ETag."""
    store = nginx.store(proxy.port)
    proxy.rule = once(cut(1000))
    assert bytes(obstore.get_range(store, key, start=0, end=5000)) == CONTENT[:5000]
    proxy.rule = always(etag('"other"'))
    options = {"range": (0, 10), "if_match": obstore.head(nginx.store(), key)["e_tag"]}
    found = obstore.get(store, key, options=options)
    assert (found.meta["e_tag"], bytes(found.bytes())) == ('"other"', CONTENT[:10])


def test_every_server_serves(server):
    """Each server starts, takes an object, and serves ranges of it, if it can serve ranges."""
    server.put("folder-object", CONTENT)
    store = server.store()
    meta = obstore.head(store, "folder-object")
    assert meta["size"] == len(CONTENT)
    if server.name == "rclone":  # it answers a range with 200
        with pytest.raises(Exception, match=r"range|partial"):
            obstore.get_range(store, "folder-object", start=5, end=50)
    else:
        assert bytes(obstore.get_range(store, "folder-object", start=5, end=50)) == CONTENT[5:50]
    server.delete("folder-object")
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "folder-object")
