"""A table of hashes in the marker of a folder: the addresses of which it may have something.

The table decides whether an opening asks for the first bytes of an object or for its state alone.
It is only a hint. If another address took the place of one, or the blocks were given up, an opening
fetches bytes that nobody needed, or makes one request more. So nothing here is locked, flushed or
checked.
"""

from __future__ import annotations

import hashlib
import os
import struct

from .layout import ADDRESSES, ADDRESSES_AT

_MARK = struct.Struct("<I")


def note(fd: int, url: str) -> bool:
    """Note an address; tell whether it was there already."""
    offset, mark = _place_of(url)
    if os.pread(fd, _MARK.size, offset) == mark:
        return True
    os.pwrite(fd, mark, offset)
    return False


def forget(fd: int, url: str) -> None:
    """Note that nothing of an address is there any more."""
    offset, mark = _place_of(url)
    if os.pread(fd, _MARK.size, offset) == mark:
        os.pwrite(fd, bytes(_MARK.size), offset)


def _place_of(url: str) -> tuple[int, bytes]:
    number = int.from_bytes(hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()[:8])
    return ADDRESSES_AT + number % ADDRESSES * _MARK.size, _MARK.pack(number >> 32 | 1)
