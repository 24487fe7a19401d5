"""Random changes of a watched path against stat(2): nothing is lost, and states chain up."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiommap
from aiommap import Change, ChangeKind, FileState
from tests.support.internals import classify
from tests.support.loops import LOOPS, run_on

pytestmark = pytest.mark.slow


class Place:
    """A directory with a file that is watched, and what programs do to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "d"
        self.path = self.directory / "f"
        self.directory.mkdir()
        self.count = 0

    def number(self):
        self.count += 1
        return self.count

    def write(self, amount):
        fd = os.open(self.path, os.O_WRONLY)
        os.pwrite(fd, bytes([amount % 256]), 0)
        os.close(fd)

    def append(self, amount):
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, bytes(amount + 1))
        os.close(fd)

    def truncate(self, amount):
        os.truncate(self.path, amount)

    def rewrite(self, amount):
        fd = os.open(self.path, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, bytes(amount))
        os.close(fd)

    def chmod(self, amount):
        os.chmod(self.path, 0o600 + amount % 64)

    def touch(self, amount):
        os.utime(self.path)

    def set_times(self, amount):
        os.utime(self.path, ns=(amount, amount))

    def replace(self, amount):
        other = self.directory / "other"
        other.write_bytes(bytes(amount))
        os.replace(other, self.path)

    def unlink(self, amount):
        os.unlink(self.path)

    def create(self, amount):
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT)
        os.write(fd, bytes(amount))
        os.close(fd)

    def link(self, amount):
        os.link(self.path, self.directory / f"hard{self.number()}")

    def exchange(self, amount):
        """Make the path a symbolic link to another file."""
        target = self.root / f"target{self.number()}"
        target.write_bytes(bytes(amount))
        temporary = self.directory / "link"
        temporary.symlink_to(target)
        os.replace(temporary, self.path)

    def rename_directory(self, amount):
        os.rename(self.directory, self.root / "away")

    def bring_directory_back(self, amount):
        os.rename(self.root / "away", self.directory)

    def remove_directory(self, amount):
        shutil.rmtree(self.directory)

    def make_directory(self, amount):
        os.mkdir(self.directory)

    def remove_and_create(self, amount):
        os.unlink(self.path)
        self.create(amount)

    def state(self):
        try:
            return FileState.of(os.stat(self.path))
        except FileNotFoundError:
            return None


OPERATIONS = sorted(
    name for name in vars(Place) if not name.startswith("_") and name not in ("number", "state")
)
STEPS = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 100), st.booleans()),
    min_size=1,
    max_size=25,
)


class Follower:
    """What a subscriber knows from its changes alone."""

    def __init__(self, state, changes):
        self.state = state
        self.changes = changes

    async def take(self) -> Change:
        with anyio.fail_after(100):
            change = await anext(self.changes)
        assert change.old == self.state  # stat_differ.1: nothing is left out in between
        assert change.kind is ChangeKind.REPLACED or classify(change.old, change.new) is change.kind
        self.state = change.new
        return change

    async def settle(self, place):
        """Take changes until the known state is the state that is there."""
        while self.state != place.state():
            await self.take()


async def play(steps, *, buffer):
    with tempfile.TemporaryDirectory() as root:
        place = Place(Path(root))
        async with aiommap.Hub() as hub:
            watcher = hub._watcher
            async with watcher.subscribe(str(place.path), buffer=buffer) as changes:
                follower = Follower(None, changes)
                for name, amount, settle in steps:
                    before = place.state()
                    with suppress(OSError):
                        getattr(place, name)(amount)
                    if settle:
                        await follower.settle(place)
                        assert before == place.state() or follower.state != before
                await follower.settle(place)


@pytest.mark.parametrize("loop", LOOPS)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, buffer=st.sampled_from([1, 2, 64]))
def test_changes_agree_with_stat(loop, steps, buffer):
    run_on(loop, lambda: play(steps, buffer=buffer))
