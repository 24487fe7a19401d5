"""Kinds of files: those that can be mapped, those that can only be read, and all others.

Worker threads only: every function here asks the file system.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from .._errors import UnsupportedError
from .._native import filesystem_type

#: statfs(2) numbers of file systems whose files are memory: tmpfs, ramfs.
_IN_MEMORY = frozenset({0x01021994, 0x858458F6})

_FUSE = 0x65735546
#: File systems that other machines or processes change unseen by this kernel, so that it raises no
#: event, and that ask a server for each write(2).
_ON_SERVER = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x0BD00BD0: "Lustre",
    _FUSE: "FUSE",
}

_HUGETLBFS = 0x958458F6

#: File systems whose files the kernel makes up as they are read: proc, sysfs, debugfs, tracefs,
#: cgroup, cgroup2, securityfs, configfs, bpf, selinuxfs, smackfs, binfmt_misc, fusectl.
_MADE_UP = frozenset(
    {
        0x9FA0,
        0x62656572,
        0x64626720,
        0x74726163,
        0x27E0EB,
        0x63677270,
        0x73636673,
        0x62656570,
        0xCAFE4A11,
        0xF97CFF8C,
        0x43415D53,
        0x42494E4D,
        0x65735543,
    }
)

_OTHER_KINDS: tuple[tuple[Callable[[int], bool], str, int], ...] = (
    (stat.S_ISDIR, "a directory", errno.EISDIR),
    (stat.S_ISFIFO, "a pipe", errno.ESPIPE),
    (stat.S_ISSOCK, "a socket", errno.ENODEV),
    (stat.S_ISCHR, "a character device", errno.ENODEV),
    (stat.S_ISBLK, "a block device", errno.ENODEV),
)

_UNREADABLE = (
    (stat.S_ISDIR, "a directory", errno.EISDIR),
    (stat.S_ISFIFO, "a pipe", errno.ESPIPE),
    (stat.S_ISSOCK, "a socket", errno.ENXIO),
)

_USE_BACKEND = "read it with FileBackend.open(path, size=…)"


def check_regular(path: str, found: os.stat_result) -> None:
    """Raise unless a path is a regular file; the error says what it is instead."""
    for test, kind, number in _OTHER_KINDS:
        if test(found.st_mode):
            reason = f"it is {kind}, and only regular files can be mapped"
            raise UnsupportedError(f"map {path}", reason, number)


def check_readable(path: str, found: os.stat_result) -> None:
    """Raise unless a path can be read at any offset."""
    for test, kind, number in _UNREADABLE:
        if test(found.st_mode):
            raise UnsupportedError(f"read {path} at an offset", f"it is {kind}", number)


def check_mappable(path: str, fd: int, found: os.stat_result) -> None:
    """Raise unless an open file can be mapped and reports its true size."""
    check_regular(path, found)
    check_file_system(path, fd)
    if is_made_up(fd, found):
        reason = (
            "it reports no bytes, but has some: they are made up as it is read, so there is "
            f"nothing to map; {_USE_BACKEND}"
        )
        raise UnsupportedError(f"map {path}", reason, errno.ENODEV)


def check_file_system(path: str, fd: int) -> None:
    """Raise if a file or directory lies on a file system whose files cannot be mapped safely."""
    if filesystem_type(fd) == _HUGETLBFS:
        # Only a huge page can replace a page that the file loses, and the kernel may have none
        # free: the process would not survive the load or store (I6).
        reason = (
            "it lies on hugetlbfs, whose pages cannot be replaced when the file loses them, nor "
            "written out; use a file on tmpfs mounted with huge=advise, and huge_pages=True, or "
            "read it with FileBackend"
        )
        raise UnsupportedError(f"map {path}", reason, errno.ENODEV)


def cannot_map(path: str) -> UnsupportedError:
    """Make the error for a file whose file system answers mmap(2) with ENODEV."""
    reason = (
        "its file system maps no files: those below /proc and /sys are made up as they are read, "
        f"and some FUSE drivers have no page cache; {_USE_BACKEND}"
    )
    return UnsupportedError(f"map {path}", reason, errno.ENODEV)


def is_made_up(fd: int, found: os.stat_result) -> bool:
    """Tell whether a regular file has bytes, or may have, although its size is 0."""
    if found.st_size or not stat.S_ISREG(found.st_mode):
        return False
    if filesystem_type(fd) in _MADE_UP:
        return True
    try:
        # Somebody may just be appending to a real file: it then has a size after the read.
        return bool(os.pread(fd, 1, 0)) and not os.fstat(fd).st_size
    except OSError:
        return False


def is_in_memory(fd: int) -> bool:
    """Tell whether reading a file never waits for a device."""
    return filesystem_type(fd) in _IN_MEMORY


def is_on_server(fd: int) -> bool:
    """Tell whether a file or directory lies on a network file system, or on FUSE."""
    return filesystem_type(fd) & 0xFFFFFFFF in _ON_SERVER


def remote_kind(fd: int) -> str | None:
    """Name the network file system that a file or directory lies on; None if it may be local."""
    kind = filesystem_type(fd) & 0xFFFFFFFF
    return None if kind == _FUSE else _ON_SERVER.get(kind)


def has_stable_pages(device: int) -> bool:
    """Tell whether a store to a page that is being written back waits for the device.

    It waits if the device (RAID, iSCSI) or the file system (btrfs) makes checksums of the data. The
    answer is True as well for a file system on several devices, and where the system does not tell.
    """
    at = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for queue in ("queue", "../queue"):  # where a disk has it, and a partition
        with suppress(OSError), open(f"{at}/{queue}/stable_writes", "rb", buffering=0) as file:
            return file.read() != b"0\n"
    return True


def size_of(path: str, fd: int, found: os.stat_result) -> int:
    """Ask the system how many bytes there are to read."""
    if stat.S_ISBLK(found.st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    if stat.S_ISREG(found.st_mode) and not is_made_up(fd, found):
        return found.st_size
    kind = "a character device"
    if stat.S_ISREG(found.st_mode):
        kind = "made up as it is read, and reports no bytes"
    reason = f"it is {kind}: pass size=, the bytes that are to be read, or more than there may be"
    raise UnsupportedError(f"tell the size of {path}", reason)
