"""Writes to the files of a log; their errors name the file. For worker threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .._errors import name_file


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put a path into an ``OSError`` that names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            name_file(error, path)
        raise


def write_all(fd: int, data: bytes, at: int) -> None:
    """Write all bytes at an offset; a single pwrite(2) may write only some of them."""
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done
