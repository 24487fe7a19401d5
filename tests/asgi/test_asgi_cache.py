"""What MappedFiles keeps open and gives up, how it keeps pace with clients, and its lifespan."""

from __future__ import annotations

import os
import re
import sys

import anyio
import pytest
from anyio.lowlevel import checkpoint

import aiommap
from aiommap.asgi import MappedFiles
from tests.support.asgi import CONTENT, Answer, ask, replace, until_answered
from tests.support.internals import (
    MAX_PIECE_BYTES,
    MIN_PIECE_BYTES,
    PIECE_SECONDS,
    FileCache,
    Folder,
    ServedPath,
)
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
#: Calls that stay in the interpreter: the methods of these types, and the functions below.
PLAIN = (bytes, dict, list, re.Pattern, str)
HARMLESS = {"Mapping.read_inline", "Match.groups", "get_running_loop", "setprofile"}
HARMLESS |= {"isinstance", "iter", "len", "max", "min", "next", "sum"}


class TestCache:
    async def test_warm_request_calls_nothing_that_waits(self, folder):
        """Of the C functions that a warm request calls, one reads, and none can wait for a disk."""
        called = []

        def look(frame, event, function):
            plain = isinstance(getattr(function, "__self__", None), PLAIN)
            if event == "c_call" and not plain:
                called.append(function.__qualname__)

        async def called_by_request():
            called.clear()
            outer = sys.getprofile()
            sys.setprofile(look)
            try:
                answer = await ask(app, "/data.bin", headers={"range": "bytes=4096-8191"})
            finally:
                sys.setprofile(outer)
            assert answer.body == CONTENT[4096:8192]
            return called.count("Mapping.read_inline")

        async with aiommap.Hub() as hub, MappedFiles(folder, hub=hub) as app:
            for _ in range(2):
                await ask(app, "/data.bin", headers={"range": "bytes=4096-8191"})
            (file,) = hub.files
            before = file.statistics()
            tries = 1
            while await called_by_request() > 1 and tries < 500:
                tries += 1  # it was split, because the loop had been busy for too long
                await checkpoint()
                before = file.statistics()
            after = file.statistics()
        assert after.inline_reads == before.inline_reads + 1
        assert after.offloaded_reads == before.offloaded_reads
        assert called.count("Mapping.read_inline") == 1
        assert set(called) <= HARMLESS

    async def test_files_beyond_the_limit_are_closed(self, folder):
        for number in range(5):
            (folder / f"{number}").write_bytes(b"%d" % number)
        async with aiommap.Hub() as hub, MappedFiles(folder, hub=hub, cache=2) as app:
            for number in (0, 1, 0, 2, 3, 2, 4):
                assert (await ask(app, f"/{number}")).body == b"%d" % number
            kept = {os.fspath(folder / "2"), os.fspath(folder / "4")}
            await until(lambda: {file.path for file in hub.files} == kept)

    async def test_replaced_file_is_closed(self, folder):
        async with aiommap.Hub() as hub, MappedFiles(folder, hub=hub) as app:
            for content in (b"one", b"two", b"three"):
                replace(folder / "data.bin", content)
                await until_answered(app, "/data.bin", content)
            await until(lambda: len(hub.files) == 1)

    async def test_slow_opening_of_an_old_version_is_not_served(self, folder):
        """Of two openings that overlap, the later one counts, whichever ends first (cache.1)."""
        async with aiommap.Hub() as hub:
            cache = FileCache(Folder(os.fspath(folder), hub), hub, 8)
            older = await cache.open("/data.bin")
            replace(folder / "data.bin", b"new")
            newer = await cache.open("/data.bin")
            watched = ServedPath()
            watched.put(newer, told=0, turn=2)
            watched.put(older, told=0, turn=1)
            assert (watched.version, newer.size) == (newer, 3)
            cache.close()

    async def test_requests_together_open_once(self, folder):
        async with aiommap.Hub() as hub, MappedFiles(folder, hub=hub) as app:
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(ask, app, "/data.bin")
            assert len(hub.files) == 1

    async def test_cancelled_first_request_harms_no_other(self, folder):
        async with MappedFiles(folder) as app:
            answers = []

            async def second():
                answers.append(await ask(app, "/data.bin"))

            async with anyio.create_task_group() as group:
                with anyio.CancelScope() as scope:
                    group.start_soon(second)
                    scope.cancel()
                    await ask(app, "/data.bin")
            assert answers[0].body == CONTENT

    async def test_aclose_closes_all(self, folder):
        async with aiommap.Hub() as hub:
            app = MappedFiles(folder, hub=hub)
            await ask(app, "/data.bin")
            await app.aclose()
            await until(lambda: not hub.files)
            assert (await ask(app, "/data.bin")).body == CONTENT
            await app.aclose()

    @pytest.mark.parametrize("cache", [0, -1, 1.5, "many"])
    def test_cache_of_no_size(self, folder, cache):
        with pytest.raises((ValueError, TypeError), match="cache"):
            MappedFiles(folder, cache=cache)

    def test_hub_that_is_none(self, folder):
        with pytest.raises(TypeError, match="hub"):
            MappedFiles(folder, hub="hub")


class TestClients:
    async def test_slow_client_is_waited_for(self, folder):
        """At most one piece is read that the client has not taken yet (sending.3)."""
        async with aiommap.Hub() as hub, MappedFiles(folder, hub=hub) as app:
            taken = 0

            async def on_send(message):
                nonlocal taken
                taken += bool(message.get("body"))
                (file,) = hub.files
                await checkpoint()
                assert (
                    file.statistics().inline_reads + file.statistics().offloaded_reads <= taken + 1
                )

            assert (await ask(app, "/data.bin", on_send=on_send)).body == CONTENT

    async def test_pieces_are_as_large_as_the_client_is_fast(self, tmp_path):
        with open(tmp_path / "huge", "wb") as file:
            file.truncate(32 << 20)
        slow = 5

        async def on_send(message):
            nonlocal slow
            slow -= 1
            await anyio.sleep(2 * PIECE_SECONDS if slow > 0 else 0)

        async with MappedFiles(tmp_path) as app:
            answer = await ask(app, "/huge", on_send=on_send)
        sizes = [len(body) for body in answer.bodies]
        assert sum(sizes) == 32 << 20
        assert min(sizes) == MIN_PIECE_BYTES
        assert sizes.index(MIN_PIECE_BYTES) < sizes.index(MAX_PIECE_BYTES)
        assert max(sizes) == MAX_PIECE_BYTES

    async def test_client_that_leaves_ends_reading(self, tmp_path):
        with open(tmp_path / "huge", "wb") as file:
            file.truncate(1 << 30)
        async with MappedFiles(tmp_path) as app:
            left, answer = anyio.Event(), Answer()
            asked = [{"type": "http.request", "body": b"", "more_body": False}]

            async def receive():
                if asked:
                    return asked.pop()
                await left.wait()
                return {"type": "http.disconnect"}

            async def on_send(message):
                if len(answer.messages) == 3:
                    left.set()
                await checkpoint()

            await ask(app, "/huge", receive=receive, on_send=on_send, answer=answer)
        assert len(answer.messages) < 50
        assert not answer.is_complete

    async def test_send_that_raises_ends_reading(self, tmp_path):
        """Servers raise since ASGI 2.4, and expect to get their own error back."""
        with open(tmp_path / "huge", "wb") as file:
            file.truncate(1 << 30)

        async def on_send(message):
            if message.get("body"):
                raise BrokenPipeError("the client has left")

        async with MappedFiles(tmp_path) as app:
            asgi = {"version": "3.0", "spec_version": "2.5"}
            with pytest.raises(BrokenPipeError, match="left"):
                await ask(app, "/huge", on_send=on_send, asgi=asgi)

    @pytest.mark.parametrize("field", [None, "bytes=5-", "bytes=0-9,500000-2900000"])
    async def test_server_that_copies_by_itself(self, folder, field):
        extensions = {"http.response.zerocopysend": {}}
        headers = {} if field is None else {"range": field}
        os.truncate(folder / "data.bin", 3 << 20)  # more than one message
        async with MappedFiles(folder) as app:
            plain = await ask(app, "/data.bin", headers=headers)
            answer = await ask(app, "/data.bin", headers=headers, extensions=extensions)
            small = await ask(
                app, "/data.bin", headers={"range": "bytes=0-9"}, extensions=extensions
            )
        assert {message["type"] for message in answer.messages} >= {"http.response.zerocopysend"}
        if field != "bytes=0-9,500000-2900000":  # a multipart answer has its own random boundary
            assert answer.body == plain.body
        assert (len(answer.body), answer.is_complete) == (len(plain.body), True)
        assert [message["type"] for message in small.messages][1:] == ["http.response.body"]


class TestLifespan:
    async def live(self, app, *, until_started):
        sent = []
        asked = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

        async def receive():
            if len(asked) == 1:
                await until_started()
            return asked.pop()

        async def send(message):
            sent.append(message)

        await app({"type": "lifespan"}, receive, send)
        return sent

    async def test_lifespan_opens_and_closes(self, folder):
        app = MappedFiles(folder)

        async def use():
            assert (await ask(app, "/data.bin")).body == CONTENT

        sent = await self.live(app, until_started=use)
        assert [message["type"] for message in sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]

    async def test_lifespan_fails_without_folder(self, folder):
        (failed,) = await self.live(MappedFiles(folder / "missing"), until_started=None)
        assert failed["type"] == "lifespan.startup.failed"
        assert "missing" in failed["message"]

    async def test_websocket_is_refused(self, folder):
        sent = []

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        await MappedFiles(folder)({"type": "websocket", "path": "/"}, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1000}]
