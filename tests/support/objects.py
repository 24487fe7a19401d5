"""Objects whose requests tests can hold, break and count: a real source without an engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from aiommap import StaleSnapshotError
from aiommap.remote import RemoteState

BLOCK = 4096
#: Eleven blocks, the last of them partial; no two ranges are equal, so a test notices a mix-up.
DATA = b"".join(number.to_bytes(4, "little") for number in range(10 * 1024 + 100))


@dataclass
class Objects:
    """One object, its versions, and the faults of requests for it.

    Attributes:
        data: the bytes of the object.
        gets: the ranges that were requested.
        stats: how often its state was requested.
        gate: requests for bytes wait until it is set.
        asked: released once for each request for bytes, before the request waits.
        down: if it is set, each request raises it.
        change: called with (start, end) before each answer; raises, or returns other bytes and
            another state, or None for the true ones.
    """

    data: bytes
    url: str = "test://host/object"
    etag: str | None = '"1"'
    gone: bool = False
    down: Exception | None = None
    heeds_etag: bool = True
    modified: str | None = None
    gets: list[tuple[int, int]] = field(default_factory=list)
    stats: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    asked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    change: Callable[[int, int], tuple[bytes, RemoteState] | None] | None = None

    def __post_init__(self):
        self.gate.set()

    @property
    def state(self):
        return RemoteState(len(self.data), self.etag, None, self.modified)

    def put(self, data):
        """Overwrite the object."""
        self.data = data
        self.etag = f'"{int((self.etag or "0").strip(chr(34))) + 1}"'

    def stat(self, known):
        self.stats += 1
        self._check_up()
        if self.gone:
            raise FileNotFoundError(2, "gone", self.url)
        return None if known == self.state else self.state

    def fetch(self, start, end, state):
        self.gets.append((start, end))
        self.asked.release()
        assert self.gate.wait(100)
        self._check_up()
        changed = self.change(start, end) if self.change is not None else None
        if changed is not None:
            return changed
        if self.gone:
            raise FileNotFoundError(2, "gone", self.url)
        if self.heeds_etag and state.etag != self.etag:
            raise StaleSnapshotError(self.url, state.size, 0, "was changed")
        return self.data[start:end], self.state

    def _check_up(self):
        if self.down is not None:
            raise self.down

    @property
    def fetched(self):
        """How many bytes were requested, in all."""
        return sum(end - start for start, end in self.gets)


@dataclass
class BegunObjects(Objects):
    """The same in a store that tells an object's state together with its first bytes.

    Attributes:
        begun: the lengths that ``begin`` was asked for.
        door, arrived: as ``gate`` and ``asked``, for the response itself, before its bytes.
        tear: makes the bytes that arrive out of those that are sent.
    """

    begun: list[int] = field(default_factory=list)
    door: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    tear: Callable[[bytes], bytes] = bytes

    def __post_init__(self):
        super().__post_init__()
        self.door.set()

    def begin(self, length):
        self.begun.append(length)
        self.arrived.release()
        assert self.door.wait(100)
        self._check_up()
        if self.gone:
            raise FileNotFoundError(2, "gone", self.url)
        state, data = self.state, self.data[:length]

        def body():
            self.asked.release()
            assert self.gate.wait(100)
            self._check_up()
            return self.tear(data)

        return state, body
