"""Resolving a watched path, and following it: links, missing directories, lost watches."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

import aiommap
from aiommap import ChangeKind
from tests.support.internals import PathResolver, is_remote
from tests.support.watching import fetch, fetch_event, missing, reach, size, watch

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hub():
    async with aiommap.Hub() as made:
        yield made


def route(path):
    found = PathResolver().resolve(str(path))
    return list(found.names), found.exists


# Resolving.


def test_plain_path_resolves_by_its_name(tmp_path):
    (tmp_path / "d").mkdir()
    file = tmp_path / "d" / "f"
    file.touch()
    assert route(file) == ([str(file)], True)


def test_missing_resolves_by_first_missing(tmp_path):
    assert route(tmp_path / "f") == ([str(tmp_path / "f")], False)
    assert route(tmp_path / "d" / "e" / "f") == ([str(tmp_path / "d")], False)


def test_links_resolve_as_kubernetes_makes_them(tmp_path):
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "f").touch()
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "f").symlink_to("..data/f")
    names = [tmp_path / "f", tmp_path / "..data", tmp_path / "..2026" / "f"]
    assert route(tmp_path / "f") == (list(map(str, names)), True)


def test_links_absolute_and_upwards(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "f").touch()
    (tmp_path / "a" / "up").symlink_to("../b")
    (tmp_path / "abs").symlink_to(tmp_path / "a" / "up")
    names = [tmp_path / "abs", tmp_path / "a" / "up", tmp_path / "b" / "f"]
    assert route(tmp_path / "abs" / "." / "f") == (list(map(str, names)), True)
    assert route(tmp_path / "a" / ".." / "b" / "f") == ([str(tmp_path / "b" / "f")], True)


def test_loops_and_dangling_links_end(tmp_path):
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    names, whole = route(tmp_path / "x")
    assert (set(names), whole) == ({str(tmp_path / "x"), str(tmp_path / "y")}, False)
    (tmp_path / "self").symlink_to("self/deeper")
    assert not route(tmp_path / "self")[1]
    (tmp_path / "dangling").symlink_to("nowhere")
    assert route(tmp_path / "dangling") == (
        [str(tmp_path / "dangling"), str(tmp_path / "nowhere")],
        False,
    )


def test_file_in_place_of_directory_ends(tmp_path):
    (tmp_path / "f").touch()
    assert route(tmp_path / "f" / "g") == ([str(tmp_path / "f" / "g")], False)


def test_resolution_agrees_with_the_kernel(tmp_path):
    """A path that exists is resolved to the path that realpath finds, whatever the links."""
    for name in ("a/b/c", "d/e"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/b/c/f").touch()
    (tmp_path / "d/l1").symlink_to("../a/b")
    (tmp_path / "d/e/l2").symlink_to("../l1/c")
    (tmp_path / "l3").symlink_to("d/e/l2/../c/f")
    for path in ("a/b/c/f", "d/l1/c/f", "d/e/l2/f", "l3"):
        names, whole = route(tmp_path / path)
        assert whole
        assert names[-1] == os.path.realpath(tmp_path / path)


def test_local_file_systems_are_not_remote(tmp_path):
    assert not is_remote(str(tmp_path))
    assert not is_remote(str(tmp_path / "not" / "there"))
    assert not is_remote("/proc/self/status")


# Following.


async def test_missing_path_is_watched(hub, tmp_path):
    path = tmp_path / "d" / "e" / "f"
    async with watch(hub, path) as changes:
        for _ in range(2):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
            assert ChangeKind.CREATED in await reach(changes, size(1))
            shutil.rmtree(tmp_path / "d")
            assert ChangeKind.REMOVED in await reach(changes, missing)


async def test_flipped_link_replaces_the_file(hub, tmp_path):
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "f").symlink_to("..data/f")
    (tmp_path / "..1").mkdir()
    (tmp_path / "..1" / "f").write_bytes(b"1")
    async with watch(hub, tmp_path / "f") as changes:
        for i in range(2, 5):
            (tmp_path / f"..{i}").mkdir()
            (tmp_path / f"..{i}" / "f").write_bytes(b"x" * i)
            (tmp_path / "..tmp").symlink_to(f"..{i}")
            os.replace(tmp_path / "..tmp", tmp_path / "..data")
            shutil.rmtree(tmp_path / f"..{i - 1}")
            assert ChangeKind.REPLACED in await reach(changes, size(i))
            with (tmp_path / "f").open("ab") as file:
                file.write(b"more")
            assert await reach(changes, size(i + 4)) == [ChangeKind.GROWN]


async def test_link_in_the_middle_is_followed(hub, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(name.encode())
    (tmp_path / "link").symlink_to("a")
    async with watch(hub, tmp_path / "link" / "f") as changes:
        (tmp_path / "new").symlink_to("b")
        os.replace(tmp_path / "new", tmp_path / "link")
        assert (await fetch(changes)).kind is ChangeKind.REPLACED
        os.truncate(tmp_path / "b" / "f", 10)
        assert await reach(changes, size(10)) == [ChangeKind.GROWN]


async def test_directory_renamed_away_and_back(hub, tmp_path):
    path = tmp_path / "d" / "f"
    path.parent.mkdir()
    path.write_bytes(b"x")
    async with watch(hub, path) as changes:
        for i in range(3):
            os.rename(tmp_path / "d", tmp_path / "away")
            assert await reach(changes, missing) == [ChangeKind.REMOVED]
            os.truncate(tmp_path / "away" / "f", 10 + i)
            os.rename(tmp_path / "away", tmp_path / "d")
            assert await reach(changes, size(10 + i)) == [ChangeKind.CREATED]
            os.truncate(path, 20 + i)
            assert await reach(changes, size(20 + i)) == [ChangeKind.GROWN]


async def test_directory_replaced(hub, tmp_path):
    path = tmp_path / "d" / "f"
    for name, data in (("d", b"x"), ("other", b"yy")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(data)
    async with watch(hub, path) as changes:
        os.rename(tmp_path / "d", tmp_path / "away")
        os.rename(tmp_path / "other", tmp_path / "d")
        await reach(changes, size(2))
        os.truncate(path, 9)
        assert await reach(changes, size(9)) == [ChangeKind.GROWN]
        with (tmp_path / "away" / "f").open("ab") as file:
            file.write(b"nobody's business")
        os.truncate(path, 8)
        assert await reach(changes, size(8)) == [ChangeKind.TRUNCATED]


async def test_ancestor_renamed_is_found(hub, tmp_path):
    path = tmp_path / "a" / "b" / "f"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    async with watch(hub, path) as changes:
        os.rename(tmp_path / "a", tmp_path / "z")
        assert await reach(changes, missing) == [ChangeKind.REMOVED]
        os.rename(tmp_path / "z", tmp_path / "a")
        assert await reach(changes, size(1)) == [ChangeKind.CREATED]
        os.truncate(path, 5)
        assert await reach(changes, size(5)) == [ChangeKind.GROWN]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_file_system_mounted_over(hub, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    async with watch(hub, path) as changes:
        done = subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=False)
        if done.returncode:
            pytest.skip("this machine does not let us mount")
        try:
            assert await reach(changes, missing) == [ChangeKind.REMOVED]
            path.write_bytes(b"yyy")
            await reach(changes, size(3))
            os.truncate(path, 1)
            assert await reach(changes, size(1)) == [ChangeKind.TRUNCATED]
        finally:
            subprocess.run(["umount", "-l", str(tmp_path)], check=True)
        assert ChangeKind.TRUNCATED not in await reach(changes, size(1))
        os.truncate(path, 7)
        await reach(changes, size(7))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_two_names_of_one_directory(hub, tmp_path):
    """The kernel watches an inode once; changes are reported by both paths."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "f").write_bytes(b"x")
    if subprocess.run(["mount", "--bind", str(one), str(two)], check=False).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        async with watch(hub, one / "f") as first, watch(hub, two / "f") as second:
            os.truncate(one / "f", 5)
            for changes in (first, second):
                change = await fetch(changes)
                assert (change.kind, change.source) == (ChangeKind.GROWN, "event")
    finally:
        subprocess.run(["umount", "-l", str(two)], check=True)


async def test_name_that_is_no_text_is_watched(hub, tmp_path):
    """The notifier fails on such a name, and then reports no other file there, either."""
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\xfe")
    with open(odd, "wb") as file:
        file.write(b"x")
    plain = tmp_path / "plain"
    plain.write_bytes(b"x")
    async with watch(hub, odd) as changes, watch(hub, plain) as others:
        os.truncate(odd, 5)
        assert (await fetch(changes)).kind is ChangeKind.GROWN
        os.truncate(plain, 5)
        assert (await fetch(others)).kind is ChangeKind.GROWN


async def test_directory_that_is_no_text_is_polled(hub, tmp_path):
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\xfe")
    os.mkdir(odd)
    plain = tmp_path / "plain"
    for path in (f"{odd}/f", plain):
        with open(path, "wb") as file:
            file.write(b"x")
    async with watch(hub, f"{odd}/f") as changes, watch(hub, plain) as others:
        os.truncate(f"{odd}/f", 5)
        assert (await fetch(changes)).source == "poll"
        await fetch_event(others, plain)
