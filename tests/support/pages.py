"""What the kernel says about the pages of a file, asked without aiommap."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

#: How many pages the cold file of tests/pages has.
COLD_PAGES = 512

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_CACHESTAT = 451


def write_back(path):
    """Let the kernel write the dirty pages of a file."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def drop_pages(path):
    """Write the file back, and let the kernel drop its pages."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def make_cold(path, pages):
    """Make a file none of whose pages is in memory, and return its path; skip where that fails."""
    path.write_bytes(os.urandom(pages * os.sysconf("SC_PAGE_SIZE")))
    drop_pages(path)
    if resident_pages(path):
        pytest.skip("this file system keeps the pages of a file in memory")
    return path


def resident_pages(path):
    """Return the numbers of the pages that are in memory, by mincore(2) of a mapping of its own."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        if not size:
            return set()
        at = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        assert _LIBC.mincore(at, size, found) == 0, os.strerror(ctypes.get_errno())
        _LIBC.munmap(at, size)
    finally:
        os.close(fd)
    return {number for number, flags in enumerate(found) if flags & 1}


def dirty_pages(path):
    """Return how many pages the kernel still has to write back, by cachestat(2)."""
    span, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    fd = os.open(path, os.O_RDONLY)
    try:
        if _LIBC.syscall(_CACHESTAT, fd, span, found, 0):
            pytest.skip(f"cachestat(2): {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)
    return found[1]


def locked_memory():
    """Tell how many KiB of this process are locked, as the text that the kernel gives."""
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("VmLck"))
