"""What the recording file system writes down: one record for each effect, in order.

The position of a record in the log is its sequence number.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

#: The inode of the one directory: syncing it makes entries durable.
DIRECTORY = 1


@dataclass(frozen=True, slots=True)
class Create:
    """A name was given to a new, empty file."""

    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class Rename:
    """A file got another name, and took it from the file that may have had it."""

    old: str
    new: str
    inode: int


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name was taken away."""

    name: str


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes reached the cache of the device; only a sync says more."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """The size was set: by truncation, or by an allocation that reaches beyond the end."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class SyncBegin:
    """A sync of a file, or of the directory, was asked for."""

    ticket: int
    inode: int


@dataclass(frozen=True, slots=True)
class SyncEnd:
    """The sync with this ticket is about to be answered, with success or with EIO."""

    ticket: int
    ok: bool


Record = Create | Rename | Unlink | Write | Resize | SyncBegin | SyncEnd


def append(log: int, record: Record) -> None:
    """Write a record to a descriptor at once, so that no crash of the server loses it."""
    os.write(log, pickle.dumps(record))


def load(path: Path) -> list[Record]:
    """Read a whole log."""
    records = []
    with path.open("rb") as file:
        while file.peek(1):
            records.append(pickle.load(file))
    return records
