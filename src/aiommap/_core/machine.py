"""The machine: the number of its boot."""

from __future__ import annotations

import os


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
