"""The identity and the state of a file, as stat(2) reports them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class StatResult(Protocol):
    """The fields of ``os.stat_result`` that the library reads."""

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
    """Device and inode, which tell a file from another one at the same path."""

    device: int
    inode: int

    @classmethod
    def of(cls, found: StatResult) -> Identity:
        """Take the identity out of a stat result."""
        return cls(found.st_dev, found.st_ino)


@dataclass(frozen=True, slots=True)
class FileState:
    """The state of a file at one moment, as stat(2) reported it.

    Attributes:
        device: number of the device of its file system.
        inode: its number in that file system; device and inode tell it from any other file.
        size: its size in bytes.
        mode: its type and permissions, as in ``st_mode``.
        links: how many names it has.
        user: number of the user that owns it.
        group: number of its group.
        mtime_ns: when its bytes were last modified, in nanoseconds since 1970.
        ctime_ns: when its bytes or its attributes were last changed, in nanoseconds since 1970.
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
