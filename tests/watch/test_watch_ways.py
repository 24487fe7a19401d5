"""Each way in which programs change files is reported, and watching goes on after it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import aiommap
from aiommap import ChangeKind, FileState
from tests.support.ways import LINES, LONG, SHORT, SIZE, WAYS

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

#: Long ago, so that a change of the times shows however coarse the clock of the file system is.
PAST = 1_000_000_000
#: Variables that git needs for author and committer.
WHAT = ("NAME", "EMAIL")
#: Messages of programs about things that this file system or this user cannot do.
UNABLE = ("not supported", "not permitted", "permission denied")


class Place:
    """A directory with the files that the ways change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "d" / "f"
        self.path.parent.mkdir()
        lines = "".join(f"{i:015}\n" for i in range(LINES)).encode()
        assert len(lines) == SIZE
        self.path.write_bytes(lines)
        (root / "same").write_bytes(lines[::-1])
        (root / "long").write_bytes(b"l" * LONG)
        (root / "short").write_bytes(b"s" * SHORT)
        (root / "spare").write_bytes(b"spare")
        for name in ("same", "long", "short", "spare"):
            os.utime(root / name, (PAST + 1000, PAST + 1000))

    def run(self, script):
        """Run a script of the shell; skip the test if it cannot be run here."""
        who = {f"GIT_{role}_{what}": "x@x" for role in ("AUTHOR", "COMMITTER") for what in WHAT}
        there = {"PYTHON": sys.executable, "HOME": str(self.root), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=self.root,
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", **there, **who},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode and any(word in done.stderr.lower() for word in UNABLE):
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr

    def state(self):
        """Return the state of the file; None if there is no file."""
        return FileState.of(os.stat(self.path)) if self.path.exists() else None


@pytest.fixture(params=WAYS, ids=[way.name for way in WAYS])
def way(request):
    obstacle = request.param.obstacle()
    if obstacle:
        pytest.skip(obstacle)
    return request.param


@pytest.fixture
def place(way, tmp_path):
    made = Place(tmp_path)
    try:
        made.run(way.before)
        os.utime(made.path, (PAST, PAST))
        yield made
    finally:
        made.run(way.after)


async def reach(changes, state):
    """Fetch changes up to the one whose new state is ``state``."""
    found = []
    with anyio.fail_after(100):
        while not found or found[-1].new != state:
            found.append(await anext(changes))
    return found


def kind_of(old, new):
    """Name the difference of two states by the rule in the documentation."""
    if old is None or new is None:
        return ChangeKind.REMOVED if new is None else ChangeKind.CREATED
    if (old.device, old.inode) != (new.device, new.inode):
        return ChangeKind.REPLACED
    if old.size != new.size:
        return ChangeKind.GROWN if old.size < new.size else ChangeKind.TRUNCATED
    if old.mtime_ns != new.mtime_ns:
        return ChangeKind.MODIFIED
    shown = [(s.mode, s.links, s.user, s.group) for s in (old, new)]
    return ChangeKind.CHANGED if shown[0] == shown[1] else ChangeKind.METADATA


def check(found, way, before, after):
    """Check that the changes lead from one state to the other, and are ones that the way allows."""
    states = [before, *(change.new for change in found)]
    assert [change.old for change in found] == states[:-1]
    assert states[-1] == after
    kinds = [change.kind for change in found]
    assert kinds == [kind_of(change.old, change.new) for change in found]
    assert way.allows([kind.value for kind in kinds]), (kinds, way.kinds)
    if way.silent:
        assert {change.source for change in found} == {"poll"}


async def test_ways_are_told_and_deafen_nobody(way, place):
    before = place.state()
    async with aiommap.open(place.path) as f, f.watch() as changes:
        await anyio.to_thread.run_sync(place.run, way.command)
        after = place.state()
        assert (after and after.size) == way.size
        same = after is not None and after.is_same_file(before)
        assert same == (way.same and way.size is not None)
        check(await reach(changes, after), way, before, after)
        assert f.orphaned == (not same)
        await still_hears(place, changes)


async def still_hears(place, changes):
    """Check that one more change is the next one reported: none came twice, watching goes on."""
    last = place.state()
    if last is None:
        # From another file system, mv copies: the file would be there before its bytes are.
        await anyio.to_thread.run_sync(place.run, "mkdir -p d; mv spare d/g; mv d/g d/f")
    else:
        await anyio.to_thread.run_sync(place.run, "truncate -s +1 d/f")
    (change,) = await reach(changes, place.state())
    assert (change.old, change.merged) == (last, 0)
    assert change.kind is (ChangeKind.CREATED if last is None else ChangeKind.GROWN)


def test_patterns_tell_kinds_apart():
    rewritten = next(way for way in WAYS if way.name == "cp")
    assert rewritten.allows(["truncated", "grown", "grown"])
    assert rewritten.allows(["grown"])
    for wrong in ([], ["truncated"], ["grown", "truncated"], ["grown", "modified"], ["replaced"]):
        assert not rewritten.allows(wrong)
    assert len({way.name for way in WAYS}) == len(WAYS) >= 20
