"""No byte from outside the folder is sent, whatever paths, links and races lead there."""

from __future__ import annotations

import os
import random
import socket
import threading

import pytest

from aiommap.asgi import MappedFiles
from tests.support.asgi import ask
from tests.support.loops import LOOPS

pytestmark = pytest.mark.anyio
SECRET, PUBLIC = b"secret", b"public"


@pytest.fixture
def folder(tmp_path):
    """A folder with a file, beside files and a folder that no answer may show."""
    made = tmp_path / "www"
    (made / "sub").mkdir(parents=True)
    (made / "file").write_bytes(PUBLIC)
    (made / "sub" / "file").write_bytes(PUBLIC)
    (tmp_path / "file").write_bytes(SECRET)
    (tmp_path / "index.html").write_bytes(SECRET)
    (tmp_path / "www-other").mkdir()  # its path begins like that of the folder
    (tmp_path / "www-other" / "file").write_bytes(SECRET)
    (tmp_path / "www-other" / "index.html").write_bytes(SECRET)
    return made


ESCAPES = [
    "/../file",
    "/..",
    "/../",
    "/sub/../../file",
    "/%2e%2e/file",
    "/%2e./file",
    "/..%2ffile",
    "/%2e%2e%2ffile",
    "/sub/%2e%2e/%2e%2e/file",
    "//../file",
    "/./../file",
    "/../www-other/file",
    "/file%00",
    "/file%00.html",
    "/../file%00",
]
NOTHING = [
    "/..\\file",
    "/..%5cfile",
    "/%252e%252e/file",
    "/..;/file",
    "/....//file",
    "/%c0%ae%c0%ae/file",
    "/\u2025/file",
    "/~root",
    "/" + "a" * 300,
    "/" + "a/" * 3000,
    "/\udcff",
    "/\ud800",
]


async def test_path_that_leads_out_is_refused(folder):
    async with MappedFiles(folder) as app:
        for path in ESCAPES:
            answer = await ask(app, path)
            assert (answer.status, answer.body) == (400, b"Bad Request"), path


async def test_path_that_only_looks_like_it(folder):
    async with MappedFiles(folder) as app:
        for path in NOTHING:
            # Some servers give no raw path: then the path counts, and is not decoded again.
            answer = await ask(app, "/", path=path, raw_path=b"")
            assert (answer.status, answer.body) == (404, b"Not Found"), path


@pytest.mark.parametrize(
    "target",
    [
        "../file",
        "{outside}/file",
        "/proc/self/cwd",
        "/etc/passwd",
        "../www-other/file",
        "/proc/self/status",
    ],
)
async def test_link_that_leads_out_is_not_there(folder, target):
    (folder / "link").symlink_to(target.format(outside=folder.parent))
    async with MappedFiles(folder) as app:
        for path in ("/link", "/link/", "/link/file"):
            answer = await ask(app, path)
            assert (answer.status, answer.body) == (404, b"Not Found")


@pytest.mark.parametrize("target", ["..", "../www-other", "{outside}", "/"])
async def test_folder_that_leads_out_is_not_there(folder, target):
    (folder / "link").symlink_to(target.format(outside=folder.parent))
    async with MappedFiles(folder) as app:
        for path in ("/link", "/link/", "/link/file", "/link/index.html", "/link/etc/passwd"):
            answer = await ask(app, path)
            assert (answer.status, answer.body) == (404, b"Not Found"), path


@pytest.mark.parametrize("target", ["sub/file", "sub/../file", "{folder}/file", "../www/file"])
async def test_link_that_stays_inside_is_followed(folder, target):
    (folder / "link").symlink_to(target.format(folder=folder))
    (folder / "sub" / "up").symlink_to("..")
    async with MappedFiles(folder) as app:
        for path in ("/link", "/sub/up/link"):
            assert (await ask(app, path)).body == PUBLIC


async def test_link_to_itself_is_forbidden(folder):
    (folder / "link").symlink_to("link")
    async with MappedFiles(folder) as app:
        assert (await ask(app, "/link")).status == 403


async def test_root_of_the_file_system_can_be_served(folder):
    async with MappedFiles("/") as app:
        assert (await ask(app, str(folder / "file"))).body == PUBLIC


async def test_file_that_may_not_be_read(folder):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / "file").chmod(0)
    async with MappedFiles(folder) as app:
        assert (await ask(app, "/file")).status == 403


async def test_what_is_no_file_is_not_there(folder):
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "terminal").symlink_to("/dev/tty")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(folder / "socket"))
        async with MappedFiles(folder) as app:
            for name in ("pipe", "socket", "device", "terminal"):
                answer = await ask(app, f"/{name}")
                assert (answer.status, answer.body) == (404, b"Not Found")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("anyio_backend", [LOOPS["asyncio"]], ids=["asyncio"])
async def test_link_turned_meanwhile_leads_out_never(folder, what):
    """A thread turns a link in and out as fast as it can, while it is opened again and again.

    One loop is enough: the race is in the thread that opens the link.
    """
    inside, outside = ("file", "../file") if what == "file" else ("sub", "..")
    path = "/link" if what == "file" else "/link/file"
    over = threading.Event()

    def turn():
        while not over.is_set():
            for target in (outside, inside):
                beside = folder / "beside"
                beside.symlink_to(target)
                beside.replace(folder / "link")

    thread = threading.Thread(target=turn)
    thread.start()
    found = {}
    try:
        # With room for one file only, each request opens its path anew.
        async with MappedFiles(folder, cache=1) as app:
            for _ in range(400):
                answer = await ask(app, path)
                found[answer.body] = found.get(answer.body, 0) + 1
                await ask(app, "/sub/file")
    finally:
        over.set()
        thread.join()
    assert found.keys() == {PUBLIC, b"Not Found"}


async def test_random_paths_find_what_is_inside(folder):
    """Paths made of all that could lead out; an oracle that asks the disk says which ones do."""
    (folder / "out").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "in").symlink_to("sub")
    draw = random.Random(4)
    names = [
        "..",
        ".",
        "",
        "%2e%2e",
        "%2e",
        "sub",
        "in",
        "out",
        "file",
        "loop",
        "www",
        "%5c..",
        "%00",
    ]
    async with MappedFiles(folder, cache=2) as app:
        for _ in range(300):
            path = "/" + "/".join(draw.choices(names, k=draw.randint(1, 6)))
            answer = await ask(app, path)
            assert SECRET not in answer.body, path
            if answer.status == 200:
                assert answer.body == PUBLIC
            else:
                assert answer.status in (301, 400, 403, 404), path
