"""The length of a file: changing it, and errors for lengths that cannot be."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress

from .._errors import UnsupportedError


def size_limit() -> int:
    """Return how long this process may make a file."""
    try:
        return resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    except OSError:  # a sandbox refuses the call; then the file system enforces the limit
        return resource.RLIM_INFINITY


def too_long(path: str, size: int) -> OSError:
    """Make the error for a length that the process or the file system does not allow."""
    limit = size_limit()
    most = "its file system allows less"
    if resource.RLIM_INFINITY != limit < size:
        most = f"RLIMIT_FSIZE allows {limit}"
    return OSError(errno.EFBIG, f"{os.strerror(errno.EFBIG)}: {size} bytes, and {most}", path)


def set_length(fd: int, size: int, old: int, path: str) -> None:
    """Change the length of a file, and check it: some FUSE drivers only report success."""
    os.ftruncate(fd, size)
    found = os.fstat(fd).st_size
    if found == size:
        return
    with suppress(OSError):
        os.ftruncate(fd, old)
    raise cannot_resize(path, size)


def cannot_resize(path: str, size: int) -> UnsupportedError:
    """Make the error for a file system that reported a new length and did not set it."""
    reason = (
        "its file system answered that this was done, but the file has another length: it can only "
        "be read, or be written whole by something else; use another file system"
    )
    return UnsupportedError(f"make {path} {size} bytes long", reason)
