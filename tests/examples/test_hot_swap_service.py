"""The hot swap service: it answers over HTTP while its table is replaced."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.examples.test_range_service import Server
from tests.support.example_scripts import EXAMPLES

pytestmark = pytest.mark.slow

SCRIPT = EXAMPLES / "hot_swap_service.py"
#: Longer than a page, so that a record mixed from two tables would be noticed.
LENGTH = 10_000
RECORDS = 8
CLIENTS = 16
SWAPS = 300


def table(version, records=RECORDS):
    """Make a table in which every record repeats its version and its number."""
    body = b"".join(b"%06d.%03d." % (version, n) * (LENGTH // 11) for n in range(records))
    length = LENGTH // 11 * 11
    whole = b"RECORDS1" + length.to_bytes(8, "little") + body
    return whole + hashlib.sha256(whole).digest()


def swap(path, content):
    incoming = path.with_name("incoming")
    incoming.write_bytes(content)
    incoming.replace(path)


def version_of(answer):
    """Return the version of the one table that the whole answer is of."""
    assert answer.status_code == 200, answer.text
    first = answer.content[:11]
    assert answer.content == first * (LENGTH // 11)
    version, number, _ = first.split(b".")
    assert answer.url.path == f"/records/{int(number)}"
    return int(version)


@pytest.fixture
def server(tmp_path):
    path = tmp_path / "table"
    path.write_bytes(table(0))
    server = Server(path, path, SCRIPT)
    yield server
    server.stop()


def mapped(server):
    lines = Path(f"/proc/{server.process.pid}/maps").read_text().splitlines()
    return sum("/table" in line for line in lines)


def test_serve_records_and_not_found(server):
    with httpx.Client(base_url=server.url) as client:
        answer = client.get("/records/3")
        assert (version_of(answer), answer.headers["x-generation"]) == (0, "1")
        assert client.get(f"/records/{RECORDS}").status_code == 404
        assert client.get(f"/records/{10**30}").status_code == 404
        assert client.get("/").json() == {"generation": 1, "size": len(table(0)), "refused": []}


def test_replace_hundreds_of_times(server):
    answered = Counter()
    due = asyncio.Event()
    newest = 0

    async def ask(client, number, swapped):
        last = 0
        while not swapped.is_set() or last < newest:
            answer = await client.get(f"/records/{number % RECORDS}")
            version = version_of(answer)
            assert version >= last  # no older table after a newer one
            last = version
            answered[version] += 1
            due.set()

    async def replace(swapped):
        nonlocal newest
        for version in range(1, SWAPS + 1):
            await asyncio.to_thread(swap, server.path, table(version))
            newest = version
            answers = answered.total() + 4
            while answered.total() < answers:  # so that requests come between any two replacements
                await asyncio.sleep(0)
        swapped.set()

    async def run():
        swapped = asyncio.Event()
        limits = httpx.Limits(max_connections=CLIENTS)
        async with (
            asyncio.timeout(150),
            httpx.AsyncClient(base_url=server.url, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(replace(swapped))
            for number in range(CLIENTS):
                group.create_task(ask(client, number, swapped))

    asyncio.run(run())
    assert answered[SWAPS] >= CLIENTS
    assert len(answered) > 3
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/").json()["refused"] == []
    while mapped(server) > 1:  # old tables are unmapped in the background
        pass


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (flipped(table(9)), "is damaged"),
        (table(9)[:-1], "is no table"),
        (b"", "is no table"),
        (b"RECORDS1" + bytes(80), "is no table"),
    ],
    ids=["flipped-bit", "cut-off", "empty", "no-length"],
)
def test_replace_by_bad_table_is_refused(server, bad, reason):
    with httpx.Client(base_url=server.url) as client:
        swap(server.path, bad)
        while not (status := client.get("/").json())["refused"]:
            assert version_of(client.get("/records/1")) == 0
        assert reason in status["refused"][0]
        assert (status["generation"], version_of(client.get("/records/0"))) == (1, 0)
        swap(server.path, table(2))
        while version_of(client.get("/records/0")) == 0:
            pass
        assert client.get("/").json()["generation"] == 2


def test_remove_serves_until_another_comes(server):
    with httpx.Client(base_url=server.url) as client:
        os.unlink(server.path)
        while not client.get("/").json()["refused"]:
            assert version_of(client.get("/records/1")) == 0
        swap(server.path, table(1))
        while version_of(client.get("/records/0")) == 0:
            pass
