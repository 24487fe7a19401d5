"""What stat(2) says of a file, as far as the library compares it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class StatResult(Protocol):
    """What is read of an ``os.stat_result``."""

    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mode(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


class Identity(NamedTuple):
    """What tells a file from another one at the same path."""

    device: int
    inode: int

    @classmethod
    def of(cls, found: StatResult) -> Identity:
        """Take the identity out of a stat result."""
        return cls(found.st_dev, found.st_ino)


@dataclass(frozen=True, slots=True)
class FileState:
    """What stat(2) said of a file at one moment.

    Attributes:
        device: number of the file system it is on.
        inode: its number there; device and inode tell it from any other file.
        size: its length in bytes.
        mode: its type and permissions.
        links: how many names it has.
        user: number of its owner.
        group: number of its group.
        mtime_ns: when its bytes were modified, in nanoseconds since 1970.
        ctime_ns: when anything of it was changed, in nanoseconds since 1970.
    """

    device: int
    inode: int
    size: int
    mode: int
    links: int
    user: int
    group: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: StatResult) -> FileState:
        """Take the state out of a stat result."""
        return cls(
            device=found.st_dev,
            inode=found.st_ino,
            size=found.st_size,
            mode=found.st_mode,
            links=found.st_nlink,
            user=found.st_uid,
            group=found.st_gid,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
        )

    def is_same_file(self, other: FileState) -> bool:
        """Tell whether two states are of one file."""
        return (self.device, self.inode) == (other.device, other.inode)
