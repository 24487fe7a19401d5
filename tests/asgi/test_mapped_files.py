"""MappedFiles, called as a server calls it: what it answers, keeps open, notices, breaks off."""

from __future__ import annotations

import os
import time
from email.utils import formatdate

import anyio
import pytest
from anyio import to_thread

import aiommap
from aiommap.asgi import MappedFiles
from tests.support.asgi import (
    CONTENT,
    SIZE,
    Answer,
    ask,
    overwrite,
    replace,
    until_answered,
    until_unknown,
)
from tests.support.internals import FIRST_PIECE_BYTES as PIECE_BYTES
from tests.support.internals import MAX_PIECE_BYTES

pytestmark = pytest.mark.anyio


class TestAnswers:
    async def test_get_whole(self, folder):
        async with MappedFiles(folder) as app:
            for _ in range(2):
                answer = await ask(app, "/data.bin")
                assert (answer.status, answer.body, answer.is_complete) == (200, CONTENT, True)
                assert max(map(len, answer.bodies)) <= MAX_PIECE_BYTES
                state = (folder / "data.bin").stat()
                assert answer.headers == {
                    "accept-ranges": "bytes",
                    "content-length": str(SIZE),
                    "content-type": "application/octet-stream",
                    "etag": answer.headers["etag"],
                    "last-modified": formatdate(int(state.st_mtime), usegmt=True),
                }

    async def test_head_has_the_fields_of_get(self, folder):
        async with MappedFiles(folder) as app:
            whole = await ask(app, "/data.bin")
            head = await ask(app, "/data.bin", "HEAD", headers={"range": "bytes=0-1"})
            assert (head.status, head.body, head.is_complete) == (200, b"", True)
            assert head.headers == whole.headers

    @pytest.mark.parametrize(
        ("spec", "first", "last"),
        [
            ("0-0", 0, 0),
            ("-10", SIZE - 10, SIZE - 1),
            ("500-", 500, SIZE - 1),
            (f"7-{SIZE + 50}", 7, SIZE - 1),
            ("4095-8192", 4095, 8192),
            ("0-9,5-99", 0, 99),
        ],
    )
    async def test_get_one_range(self, folder, spec, first, last):
        async with MappedFiles(folder) as app:
            answer = await ask(app, "/data.bin", headers={"range": f"bytes={spec}"})
            assert (answer.status, answer.body) == (206, CONTENT[first : last + 1])
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
            assert answer.headers["content-length"] == str(last + 1 - first)
            assert answer.is_complete

    async def test_get_many_ranges(self, folder):
        async with MappedFiles(folder) as app:
            field = f"bytes=-5,0-{2 * PIECE_BYTES},{SIZE}-"
            answer = await ask(app, "/data.bin", headers={"range": field})
        assert (answer.status, answer.is_complete) == (206, True)
        assert answer.headers["content-length"] == str(len(answer.body))
        assert "content-range" not in answer.headers
        kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
        assert kind == "multipart/byteranges"
        before, *parts, end = answer.body.split(f"\r\n--{boundary}".encode())
        assert (before, end) == (b"", b"--\r\n")
        binary = "\r\nContent-Type: application/octet-stream\r\nContent-Range: "
        expected = [(SIZE - 5, SIZE - 1), (0, 2 * PIECE_BYTES)]
        for part, (first, last) in zip(parts, expected, strict=True):
            head, _, body = part.partition(b"\r\n\r\n")
            assert head.decode() == f"{binary}bytes {first}-{last}/{SIZE}"
            assert body == CONTENT[first : last + 1]

    async def test_get_refused_range(self, folder):
        async with MappedFiles(folder) as app:
            answer = await ask(app, "/data.bin", headers={"range": f"bytes={SIZE}-"})
            assert (answer.status, answer.body) == (416, b"")
            assert answer.headers["content-range"] == f"bytes */{SIZE}"
            assert answer.headers["content-length"] == "0"

    async def test_get_conditions(self, folder):
        async with MappedFiles(folder) as app:
            shown = (await ask(app, "/data.bin")).headers
            known = await ask(app, "/data.bin", headers={"if_none_match": shown["etag"]})
            assert (known.status, known.body, known.is_complete) == (304, b"", True)
            assert known.headers["etag"] == shown["etag"]
            assert "content-length" not in known.headers
            failed = await ask(app, "/data.bin", headers={"if_match": '"other"'})
            assert (failed.status, failed.body) == (412, b"")
            assert failed.headers["content-length"] == "0"
            fields = {"if_range": shown["etag"], "range": "bytes=0-9"}
            assert (await ask(app, "/data.bin", headers=fields)).body == CONTENT[:10]
            fields = {"if_modified_since": shown["last-modified"]}
            assert (await ask(app, "/data.bin", headers=fields)).status == 304

    async def test_get_empty_file(self, folder):
        (folder / "empty").write_bytes(b"")
        async with MappedFiles(folder) as app:
            for headers in ({}, {"range": "bytes=0-"}):
                answer = await ask(app, "/empty", headers=headers)
                assert (answer.status, answer.body, answer.is_complete) == (200, b"", True)
                assert answer.headers["content-length"] == "0"

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
    async def test_other_methods(self, folder, method):
        async with MappedFiles(folder) as app:
            answer = await ask(app, "/data.bin", method)
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")

    async def test_modified_in_future_is_now(self, folder):
        os.utime(folder / "data.bin", (0, time.time() + 1e6))
        async with MappedFiles(folder) as app:
            date = (await ask(app, "/data.bin")).headers["last-modified"]
            now = int(time.time())
            assert date in [formatdate(now - i, usegmt=True) for i in range(60)]

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("a.html", "text/html; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.tar.gz", "application/gzip"),
            ("a.svg", "image/svg+xml"),
            ("data:a.unknown-kind", "application/octet-stream"),
        ],
    )
    async def test_media_type(self, folder, name, expected):
        (folder / name).write_bytes(b"x")
        async with MappedFiles(folder) as app:
            assert (await ask(app, f"/{name}")).headers["content-type"] == expected


class TestFolders:
    @pytest.fixture
    def folder(self, folder):
        (folder / "a b" / "c").mkdir(parents=True)
        (folder / "a b" / "index.html").write_bytes(b"<p>")
        return folder

    async def test_folder_is_answered_with_its_index(self, folder):
        async with MappedFiles(folder) as app:
            for path in ("/a%20b/", "//a%20b//", "/a%20b/.", "/a%20b/c/..", "/x/../a%20b/"):
                answer = await ask(app, path)
                assert (answer.status, answer.body) == (200, b"<p>")
                assert answer.headers["content-type"] == "text/html; charset=utf-8"

    @pytest.mark.parametrize(
        ("path", "place"),
        [
            ("/a%20b", "./a%20b/"),
            ("/a%20b?q=%20&r", "./a%20b/?q=%20&r"),
            ("/c/../a%20b", "./a%20b/"),
            ("/a%20b%2fc", "./a%20b%2fc/"),
            ("//a%20b", "./a%20b/"),
        ],
    )
    async def test_folder_without_slash_redirects(self, folder, path, place):
        async with MappedFiles(folder) as app:
            answer = await ask(app, path)
            assert (answer.status, answer.headers["location"]) == (301, place)

    async def test_redirect_lets_no_line_through(self, folder):
        async with MappedFiles(folder) as app:
            given = {"raw_path": b"/a\r\nb", "query_string": b"q\r\nx: y"}
            answer = await ask(app, "/a%20b", **given)
            assert answer.headers["location"] == "./ab/?qx:y"

    @pytest.mark.parametrize("path", ["/a%20b/c/", "/nothing", "/data.bin/", "/a%20b/index.html/"])
    async def test_nothing_there(self, folder, path):
        async with MappedFiles(folder) as app:
            answer = await ask(app, path)
            assert (answer.status, answer.body) == (404, b"Not Found")
            assert (await ask(app, path, "HEAD")).body == b""

    async def test_root_that_is_no_folder(self, folder):
        with pytest.raises(NotADirectoryError, match="data"):
            async with MappedFiles(folder / "data.bin"):
                pass
        with pytest.raises(FileNotFoundError, match="missing"):
            await ask(MappedFiles(folder / "missing"), "/data.bin")


class TestChanges:
    async def test_replaced_file_is_served(self, folder):
        path = folder / "data.bin"
        async with MappedFiles(folder) as app:
            first = await ask(app, "/data.bin")
            for number in range(3):
                replace(path, b"%d" % number)
                await until_answered(app, "/data.bin", b"%d" % number)
            last = await ask(app, "/data.bin", headers={"if_none_match": first.headers["etag"]})
            assert last.status == 200

    async def test_changed_file_is_served(self, folder):
        path = folder / "data.bin"
        async with MappedFiles(folder) as app:
            await ask(app, "/data.bin")
            overwrite(path, b"new")
            await until_answered(app, "/data.bin", b"new" + CONTENT[3:])
            overwrite(path, b"more", SIZE)
            await until_answered(app, "/data.bin", b"new" + CONTENT[3:] + b"more")

    async def test_removed_file_is_gone(self, folder):
        async with MappedFiles(folder) as app:
            await ask(app, "/data.bin")
            (folder / "data.bin").unlink()
            await until_answered(app, "/data.bin", b"Not Found")
            (folder / "data.bin").write_bytes(b"again")
            assert (await ask(app, "/data.bin")).body == b"again"

    async def test_turned_link_is_followed(self, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_bytes(name.encode())
        (tmp_path / "current").symlink_to("one")
        async with MappedFiles(tmp_path / "current") as app:
            assert (await ask(app, "/file")).body == b"one"
            (tmp_path / "next").symlink_to("two")
            (tmp_path / "next").replace(tmp_path / "current")
            await until_answered(app, "/file", b"two")

    async def test_replaced_file_is_sent_to_its_end(self, folder):
        path = folder / "data.bin"
        async with MappedFiles(folder) as app:
            replaced = False

            async def on_send(message):
                nonlocal replaced
                if not replaced and message.get("body"):
                    replaced = True
                    await to_thread.run_sync(replace, path, b"new")
                    await until_answered(app, "/data.bin", b"new")

            assert (await ask(app, "/data.bin", on_send=on_send)).body == CONTENT

    async def test_truncated_file_is_broken_off(self, folder):
        answer = Answer()
        async with MappedFiles(folder) as app:

            async def on_send(message):
                os.truncate(folder / "data.bin", 10)

            with pytest.raises(aiommap.MappingFaultError):
                await ask(app, "/data.bin", on_send=on_send, answer=answer)
        assert not answer.is_complete
        assert answer.body == CONTENT[: len(answer.body)]

    @pytest.mark.parametrize(
        ("change", "argument", "size"),
        [(overwrite, bytes(SIZE), SIZE), (os.truncate, SIZE - 1, SIZE - 1)],
    )
    async def test_overwritten_file_is_broken_off(self, folder, change, argument, size):
        path = folder / "data.bin"
        answer = Answer()
        async with MappedFiles(folder) as app:

            async def on_send(message):
                if message.get("body") and not answer.body:
                    tag = (await ask(app, "/data.bin")).headers["etag"]
                    await to_thread.run_sync(change, path, argument)
                    await until_unknown(app, "/data.bin", tag)

            with pytest.raises(aiommap.StaleSnapshotError) as caught:
                await ask(app, "/data.bin", on_send=on_send, answer=answer)
        assert (caught.value.opened_size, caught.value.size) == (SIZE, size)
        assert answer.body == CONTENT[: len(answer.body)]

    async def test_log_that_grows_is_sent(self, folder):
        path = folder / "data.bin"
        async with MappedFiles(folder) as app:
            grown = CONTENT

            async def on_send(message):
                nonlocal grown
                if message.get("body") and grown is CONTENT:
                    await to_thread.run_sync(overwrite, path, b"more", SIZE)
                    grown += b"more"
                    await until_answered(app, "/data.bin", grown)

            assert (await ask(app, "/data.bin", on_send=on_send)).body == CONTENT

    async def test_truncated_before_it_is_asked_for(self, folder):
        """No piece was sent yet, so the answer is the file as it is now."""
        async with MappedFiles(folder) as app:
            await ask(app, "/data.bin")
            os.truncate(folder / "data.bin", 10)
            answer = await ask(app, "/data.bin")
            assert (answer.status, answer.body) == (200, CONTENT[:10])


class TestMounts:
    @pytest.mark.parametrize(
        ("root", "path"),
        [
            ("", "/data.bin"),
            ("/files", "/files/data.bin"),
            ("/files", "/data.bin"),  # a proxy has removed the prefix
            ("/da", "/data.bin"),
            ("/a b", "/a%20b/data.bin"),
        ],
    )
    async def test_path_below_mount(self, folder, root, path):
        async with MappedFiles(folder) as app:
            assert (await ask(app, path, root_path=root)).body == CONTENT

    async def test_mount_without_index_is_not_found(self, folder):
        async with MappedFiles(folder) as app:
            answer = await ask(app, "/files", root_path="/files")
        assert answer.status == 404  # the folder has no index


def test_one_application_in_several_loops(folder):
    """As with a test client that runs a loop for each request, and closes nothing."""
    app = MappedFiles(folder)
    for _ in range(3):
        assert anyio.run(ask, app, "/data.bin").body == CONTENT
