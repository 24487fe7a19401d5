"""The machine: the number of its boot, and the file systems that it shares with other machines."""

from __future__ import annotations

import os

from .._native import filesystem_type

#: statfs(2) numbers of file systems whose pages other machines change, or do not see.
_REMOTE = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x5346414F: "AFS",
}


def boot_id() -> bytes:
    """Return the number of this boot of the machine; zeros if the system does not tell."""
    try:
        fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return bytes.fromhex(os.read(fd, 64).decode("ascii").strip().replace("-", ""))
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return bytes(16)


def remote_kind(fd: int) -> str | None:
    """Name the network file system that an open file lies on; None if it is local."""
    return _REMOTE.get(filesystem_type(fd) & 0xFFFFFFFF)
