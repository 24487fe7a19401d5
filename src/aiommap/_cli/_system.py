"""Facts that the operating system knows about a file: its file system, and its cached pages.

Functions here that are not coroutines block for a short time: commands call them in a worker
thread, or before the loop runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiommap

HIDDEN = "hidden by the kernel: you neither own the file nor may write to it"

# The number on every architecture but alpha: all others share the numbers of calls from 424 on.
_CACHESTAT = 451


@dataclass(frozen=True, slots=True)
class CacheState:
    """Page counts of one file in the page cache, as cachestat(2) gives them.

    Attributes:
        cached: pages in memory.
        dirty: pages in memory that are newer than the disk.
        writeback: pages that are being written to the disk.
        evicted: pages that were in memory and were dropped.
        recently_evicted: those of them that were dropped so recently that memory is short.
    """

    cached: int
    dirty: int
    writeback: int
    evicted: int
    recently_evicted: int


def cache_state(path: str) -> CacheState | None:
    """Ask cachestat(2) about a whole file.

    Returns:
        The counts; None if the kernel lacks the call (before Linux 6.5) or refuses it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    whole = (ctypes.c_uint64 * 2)(0, 0)
    counts = (ctypes.c_uint64 * 5)()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        answer = library.syscall(
            ctypes.c_long(_CACHESTAT),
            ctypes.c_uint(descriptor),
            ctypes.byref(whole),
            ctypes.byref(counts),
            ctypes.c_uint(0),
        )
    finally:
        os.close(descriptor)
    return CacheState(*counts) if answer == 0 else None


def file_system(path: str) -> str:
    """Return the name of the file system that holds a file, such as ``ext4``; or ``unknown``.

    We look it up by mount id: device numbers are not unique (btrfs), and a path prefix is wrong if
    one mount lies over another.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split()
        mount = facts[facts.index("mnt_id:") + 1]
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split(" ", 1)[0] == mount:
                return line.split(" - ", 1)[1].split(" ", 1)[0]
    except (OSError, ValueError, IndexError):
        pass
    finally:
        os.close(descriptor)
    return "unknown"


async def visible_residency(
    file: aiommap.MappedFile, offset: int = 0, length: int | None = None
) -> aiommap.Residency | None:
    """Return the residency of a range; None if the kernel hides it.

    Since Linux 5.2 the kernel shows it only to users who own the file or may write to it, because
    it tells what other users read.
    """
    try:
        return await file.residency(offset, length)
    except aiommap.UnsupportedError as error:
        if error.errno != errno.EPERM:
            raise
        return None


def drop_pages(path: str, offset: int = 0, length: int = 0) -> None:
    """Ask the kernel to drop the cached pages of a range; the file does not change.

    Pages that are mapped, or on a file system in memory, stay: count afterwards which are left.
    Length 0 means to the end of the file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def files_below(path: str, failures: list[OSError]) -> Iterator[str]:
    """Yield the path itself; for a folder, yield every regular file below it, in sorted order.

    A file with several names is yielded once. Symbolic links below the folder are not followed.
    Errors are appended to ``failures``.
    """
    if not Path(path).is_dir():
        yield path
        return
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(path, onerror=failures.append):
        folders.sort()
        for name in sorted(names):
            candidate = os.path.join(folder, name)
            try:
                facts = os.lstat(candidate)
            except OSError as error:
                failures.append(error)
                continue
            identity = (facts.st_dev, facts.st_ino)
            if stat.S_ISREG(facts.st_mode) and identity not in seen:
                seen.add(identity)
                yield candidate
