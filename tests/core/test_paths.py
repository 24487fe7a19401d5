"""A path leads to the file that open(2) would find (I14)."""

from __future__ import annotations

import errno
import os
import stat

import anyio
import anyio.to_thread
import pytest

import aiommap
from tests.support.internals import absolute_path
from tests.support.watching import fetch, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def releases(tmp_path):
    """A link into a folder beside another file of the same name."""
    (tmp_path / "releases" / "42").mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/42")
    (tmp_path / "releases" / "state").write_bytes(b"meant")
    (tmp_path / "state").write_bytes(b"other")
    return tmp_path


async def first_bytes(opening):
    async with opening as opened:
        if isinstance(opened, aiommap.MappedFile):
            return await opened.read(0, 5)
        if isinstance(opened, aiommap.LiveSnapshot):
            return await opened.current.read_exact(0, 5)
        return await opened.read_exact(0, 5)


OPENERS = {
    "open": aiommap.open,
    "open for writing": lambda path: aiommap.open(path, "r+"),
    "open privately": lambda path: aiommap.open(path, "c"),
    "Snapshot": aiommap.Snapshot.open,
    "MappedBackend": aiommap.MappedBackend.open,
    "FileBackend": aiommap.FileBackend.open,
    "follow": aiommap.follow,
}
each_opener = pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS.keys())


@each_opener
async def test_open_follows_dots_after_a_link(releases, opener):
    assert await first_bytes(opener(f"{releases}/current/../state")) == b"meant"


@each_opener
async def test_open_of_a_relative_path(releases, monkeypatch, opener):
    monkeypatch.chdir(releases / "releases" / "42")
    for path in ("../state", "./..//state", "../../current/../state"):
        assert await first_bytes(opener(path)) == b"meant"


@each_opener
async def test_open_after_the_folder_was_left(releases, monkeypatch, opener):
    """A path starts at the working directory of the call, not of the moment when it is opened."""
    monkeypatch.chdir(releases / "releases")
    opening = opener("state")
    monkeypatch.chdir(releases)
    assert await first_bytes(opening) == b"meant"


@each_opener
async def test_open_with_a_slash_at_the_end(releases, opener):
    (releases / "link").symlink_to("state")
    for path in ("state/", "state/.", "link/", "state//"):
        with pytest.raises(NotADirectoryError):
            await opener(f"{releases}/{path}")


@pytest.mark.parametrize("mode", ["w+", "x+"])
async def test_create_with_a_slash_at_the_end(releases, mode):
    before = sorted(os.listdir(releases))
    for path in ("new/", "state/", "new/."):
        with pytest.raises(OSError, match="directory"):
            await aiommap.open(f"{releases}/{path}", mode, size=1)
    assert sorted(os.listdir(releases)) == before
    assert (releases / "state").read_bytes() == b"other"


async def test_overwrite_follows_dots_after_a_link(releases):
    async with aiommap.open(f"{releases}/current/../state", "w+", size=4) as f:
        await f.write(0, b"new!")
    assert (releases / "releases" / "state").read_bytes() == b"new!"
    assert (releases / "state").read_bytes() == b"other"


async def test_watch_follows_dots_after_a_link(releases):
    async with (
        aiommap.Hub() as hub,
        hub.watch(f"{releases}/current/../state") as changes,
        hub.watch(f"{releases}/state") as others,
    ):
        write(releases / "releases" / "state")
        assert (await fetch(changes)).path == f"{releases}/current/../state"
        write(releases / "state")
        assert (await fetch(others)).path == f"{releases}/state"


async def test_watch_with_a_slash_at_the_end(releases):
    async with aiommap.Hub() as hub:
        with pytest.raises(NotADirectoryError):
            await hub.watch(f"{releases}/state/").__aenter__()
        async with hub.watch(f"{releases}/releases/") as changes:
            (releases / "releases" / "new").touch()
            assert (await fetch(changes)).kind is aiommap.ChangeKind.MODIFIED


async def test_reopen_follows_dots_after_a_link(releases):
    (releases / "next" / "43").mkdir(parents=True)
    (releases / "next" / "state").write_bytes(b"newer")
    async with aiommap.open(f"{releases}/current/../state") as f:
        (releases / "turned").symlink_to("next/43")
        os.replace(releases / "turned", releases / "current")
        await f.reopen()
        assert await f.read(0, 5) == b"newer"


async def test_open_from_a_removed_folder(tmp_path, monkeypatch):
    """getcwd(2) has no name for such a folder, but open(2) starts there all the same."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "file").write_bytes(b"bytes")
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    assert await first_bytes(aiommap.open("../file")) == b"bytes"
    with pytest.raises(FileNotFoundError):
        await aiommap.open("file")


@pytest.mark.parametrize(
    ("path", "whole"),
    [
        ("/a//b/./c", "/a/b/c"),
        ("//a", "/a"),
        ("/a/../b", "/a/../b"),
        ("/../a", "/a"),
        ("/a/", "/a/"),
        ("/a/.", "/a/"),
        ("/", "/"),
        ("x", "{}/x"),
        ("./x/..", "{}/x/.."),
        (".", "{}"),
    ],
)
def test_absolute_path(path, whole):
    assert absolute_path(path) == whole.format(os.getcwd())


def test_absolute_path_above_the_folder(tmp_path, monkeypatch):
    """No link can come before leading dots, so they are resolved."""
    monkeypatch.chdir(tmp_path)
    assert absolute_path("../x") == str(tmp_path.parent / "x")
    assert absolute_path("../" * 100 + "x") == "/x"


@pytest.mark.parametrize(
    "use", [*OPENERS.values(), aiommap.Hub().watch], ids=[*OPENERS.keys(), "watch"]
)
def test_names_that_no_file_can_have(use):
    with pytest.raises(ValueError, match="null character"):
        use("a\0b")
    with pytest.raises(ValueError, match="encoding"):
        use("a\ud800b")


async def test_names_that_are_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    with open(path, "wb") as file:
        file.write(b"bytes")
    assert await first_bytes(aiommap.open(os.fsdecode(path))) == b"bytes"
    assert await first_bytes(aiommap.open(path)) == b"bytes"


# Paths that cannot be opened raise the error of open(2).


def unopenable(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "plain").touch()
    return {
        errno.ELOOP: tmp_path / "loop",
        errno.ENAMETOOLONG: tmp_path / ("n" * 256),
        errno.ENOTDIR: tmp_path / "plain" / "below",
        errno.ENOENT: f"{tmp_path}/" + "d/" * 1500 + "f",
    }


@each_opener
async def test_open_of_an_impossible_path(tmp_path, opener):
    for number, path in unopenable(tmp_path).items():
        with pytest.raises(OSError) as caught:  # noqa: PT011  the number says which
            await opener(path)
        assert caught.value.errno == number
        assert caught.value.filename == str(path)


async def test_watch_of_an_impossible_path(tmp_path):
    """Paths where a file may appear later are watched, and they disturb no other watch."""
    file = tmp_path / "file"
    file.write_bytes(b"bytes")
    async with aiommap.Hub() as hub, hub.watch(file) as changes:
        for number, path in unopenable(tmp_path).items():
            with anyio.fail_after(100):
                if number == errno.ENAMETOOLONG:
                    with pytest.raises(OSError, match="too long"):
                        await hub.watch(path).__aenter__()
                else:
                    async with hub.watch(path):
                        pass
        async with hub.watch(tmp_path / "loop") as others, hub.watch(f"{tmp_path}/" + "d/" * 1500):
            write(file)
            assert (await fetch(changes)).path == str(file)
            (tmp_path / "real").touch()
            os.replace(tmp_path / "real", tmp_path / "loop")
            assert (await fetch(others)).kind is aiommap.ChangeKind.CREATED


async def test_watch_of_links_that_double(tmp_path):
    """Each link doubles the number of names, while the kernel counts only the links of the path."""
    for level in range(39):
        (tmp_path / f"l{level}").symlink_to(f"l{level + 1}/../l{level + 1}")
    (tmp_path / "l39").mkdir()
    async with aiommap.Hub() as hub:
        with anyio.fail_after(100):
            async with hub.watch(tmp_path / "l0"):
                pass


# Files that the kernel makes up.


@pytest.mark.parametrize(
    "path", ["/proc/self/comm", "/proc/sys/kernel/core_pattern", "/sys/kernel/mm/ksm/run"]
)
@pytest.mark.parametrize(
    "opener", ["open", "open privately", "Snapshot", "MappedBackend", "follow"]
)
async def test_open_of_kernel_files_is_refused(path, opener):
    if not os.path.exists(path):
        pytest.skip(f"there is no {path}")
    with pytest.raises(aiommap.UnsupportedError, match=r"made up .*FileBackend\.open") as caught:
        await OPENERS[opener](path)
    assert path in str(caught.value)
    assert caught.value.errno == errno.ENODEV


async def test_file_backend_reads_kernel_files():
    with pytest.raises(aiommap.UnsupportedError, match=r"made up .*pass size="):
        await aiommap.FileBackend.open("/proc/version")
    with open("/proc/version", "rb") as file:
        text = file.read()
    async with aiommap.FileBackend.open("/proc/version", size=len(text)) as backend:
        assert await backend.read_exact(0, len(text)) == text
    async with aiommap.FileBackend.open("/proc/version", size=1 << 20) as backend:
        with pytest.raises(aiommap.OutOfBoundsError) as caught:
            await backend.read_exact(0, 1 << 20)
        assert caught.value.limit == len(text)


async def test_open_of_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    for opener in OPENERS.values():
        with anyio.fail_after(100), pytest.raises(aiommap.UnsupportedError, match="a pipe"):
            await opener(tmp_path / "pipe")


async def test_watch_from_a_removed_folder(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    async with aiommap.Hub() as hub:
        with pytest.raises(FileNotFoundError, match="working directory"):
            await hub.watch("../file").__aenter__()
