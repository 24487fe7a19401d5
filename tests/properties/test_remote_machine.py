"""Remote snapshots against a model: versions of objects, reads, evictions, other boots, outages.

The oracle keeps the bytes of each version and knows nothing of blocks. A read of a version returns
its bytes, or raises if the store has another version or is down.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import anyio
import hypothesis.strategies as st
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aiommap import StaleSnapshotError
from aiommap.remote import RemoteCache, RemoteError
from tests.support.internals import Header, crc32c
from tests.support.objects import Objects
from tests.support.strategies import examples

BLOCK = 4096
ROOM = 14 * BLOCK


places = st.integers(0, 9 * BLOCK)


def content(version, blocks):
    """Make bytes that differ in each block and in each version."""
    size = blocks * BLOCK - 1000 if blocks else 0
    words = ((version << 24 | number).to_bytes(4, "little") for number in range(size // 4 + 1))
    return b"".join(words)[:size]


class RemoteMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self._portal = start_blocking_portal()
        self.portal = self._portal.__enter__()
        self.objects = None
        self.cache = None
        self.version = 0
        #: Snapshots that are open, with the bytes of the version that each was opened at.
        self.open = []
        self.down = False

    def call(self, function, *args):
        async def run():
            with anyio.fail_after(100):
                return await function(*args)

        return self.portal.call(run)

    @initialize(blocks=st.integers(0, 8))
    def begin(self, blocks):
        self.objects = Objects(content(1, blocks))
        self.version = 1
        self.make_cache()

    def make_cache(self):
        self.cache = RemoteCache(
            self.folder / "cache",
            block_size=BLOCK,
            request_size=3 * BLOCK,
            max_bytes=ROOM,
            min_free=0.0,
        )

    @rule(ahead=st.booleans())
    @precondition(lambda self: len(self.open) < 4 and not self.down)
    def open_snapshot(self, ahead):
        async def run():
            return await self.cache.open(self.objects, read_ahead=ahead)

        self.open.append((self.call(run), self.objects.data))

    @rule(
        which=st.integers(0, 3), start=st.integers(0, 9 * BLOCK), length=st.integers(0, 9 * BLOCK)
    )
    def read(self, which, start, length):
        if not self.open:
            return
        snapshot, data = self.open[which % len(self.open)]
        assert snapshot.size == len(data)
        start = min(start, len(data))
        length = min(length, len(data) - start)
        try:
            found = self.call(snapshot.read_exact, start, length)
        except StaleSnapshotError:
            assert data != self.objects.data
            return
        except RemoteError:
            assert self.down
            return
        assert found == data[start : start + length]

    @rule(which=st.integers(0, 3), places=st.lists(st.integers(0, 8 * BLOCK), max_size=5))
    def read_many(self, which, places):
        if not self.open:
            return
        snapshot, data = self.open[which % len(self.open)]
        ranges = [(at, min(100, len(data) - at)) for at in places if at <= len(data)]
        try:
            found = self.call(snapshot.read_many, ranges)
        except (StaleSnapshotError, RemoteError):
            assert self.down or data != self.objects.data
            return
        assert found == [data[at : at + length] for at, length in ranges]

    @rule(which=st.integers(0, 3))
    def close_snapshot(self, which):
        if self.open:
            snapshot, _ = self.open.pop(which % len(self.open))
            self.call(snapshot.aclose)

    @rule(blocks=st.integers(0, 8))
    def overwrite(self, blocks):
        self.version += 1
        self.objects.put(content(self.version, blocks))

    @rule()
    def outage(self):
        self.down = not self.down
        self.objects.down = RemoteError(self.objects.url, "down") if self.down else None

    @rule(everything=st.booleans())
    def clear(self, everything):
        self.call(self.cache.clear, None if everything else self.objects)

    @rule()
    def verify(self):
        assert self.call(self.cache.verify).bad_blocks == 0

    @rule()
    def delete_folder(self):
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    @rule(reboot=st.booleans(), flip=st.none() | st.integers(0, 8 * BLOCK))
    def restart(self, reboot, flip):
        for snapshot, _ in self.open:
            self.call(snapshot.aclose)
        self.open = []
        self.call(self.cache.aclose)
        if reboot:
            self.reboot(flip)
        self.make_cache()

    def reboot(self, flip):
        """Leave the folder as another boot finds it, perhaps with a bit of data wrong."""
        for path in (self.folder / "cache").glob("*/*.map"):
            with path.open("r+b") as file:
                header = Header.unpack(file.read(4096), crc32c)
                header.boot = bytes(16)
                file.seek(0)
                file.write(header.pack(crc32c))
        for path in (self.folder / "cache").glob("*/*.data"):
            if flip is not None and flip < path.stat().st_size:
                with path.open("r+b") as file:
                    file.seek(flip)
                    byte = file.read(1)[0]
                    file.seek(flip)
                    file.write(bytes([byte ^ 0x10]))

    @invariant()
    def disk_is_within_budget(self):
        used = 0
        for path in (self.folder / "cache").glob("*/*"):
            used += path.stat().st_blocks * 512
        assert used <= ROOM

    def teardown(self):
        if self.cache is not None:
            for snapshot, _ in self.open:
                self.call(snapshot.aclose)
            self.call(self.cache.aclose)
        self._portal.__exit__(None, None, None)
        shutil.rmtree(self.folder)


RemoteMachine.TestCase.settings = settings(
    max_examples=examples(10),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[*HealthCheck],
)
TestRemoteMachine = RemoteMachine.TestCase
