"""Huge pages: how many bytes of a mapping the kernel maps by them, as /proc shows."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable

from .._core.file_core import FileCore
from .._errors import UnsupportedError

_SMAPS = "/proc/self/smaps"
_RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
#: Private pages, tmpfs, and other file systems.
_KINDS = ("AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:")


def huge_bytes(lines: Iterable[str], start: int, end: int) -> int:
    """Add up the huge pages in lines of smaps for the mappings at addresses [start, end)."""
    total, ours = 0, False
    for line in lines:
        found = _RANGE.match(line)
        if found:
            ours = start <= int(found[1], 16) < end
        elif ours and line.startswith(_KINDS):
            total += int(line.split()[1]) * 1024
    return total


def count_huge_bytes(core: FileCore) -> int:
    """Ask the kernel how many bytes of a file it maps by huge pages. Worker threads only."""
    start = core.mapping.address
    try:
        with open(_SMAPS, encoding="utf-8", errors="replace") as lines:
            return huge_bytes(lines, start, start + core.mapping.capacity)
    except (FileNotFoundError, PermissionError) as error:
        reason = "the kernel tells it in /proc, which is not there or may not be read any more"
        what = f"count the huge pages of {core.path}"
        raise UnsupportedError(what, reason, errno.ENOSYS) from error
    except OSError as error:  # no descriptor is left, for instance
        reason = f"{error.strerror}, while its huge pages were to be counted"
        raise OSError(error.errno, reason, core.path) from error
