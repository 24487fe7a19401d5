"""Errors after a fault: for a copy that stopped, a lost page or a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from .._errors import MappingFaultError
from .._native import Mapping, Receipt
from .disk import Store

#: Errors that mean "no room": on the disk, in a user's quota, or under the limit on file sizes.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Faults:
    """Makes the errors of one file. All but ``damage`` ask the file system: worker threads only."""

    __slots__ = ("_mapping", "_mode", "_path")

    def __init__(self, mapping: Mapping, path: str, mode: str) -> None:
        self._mapping = mapping
        self._path = path
        self._mode = mode

    def damage(self, copied: int = 0) -> MappingFaultError | None:
        """Make the error for a poisoned mapping; None if it is not poisoned. In any thread."""
        mapping = self._mapping
        first = mapping.first_bad
        if first is None:
            return None
        number = mapping.damage_errno
        discards = self._mode != "r" and (self._mode != "c" or mapping.dirty_bytes() > 0)
        return MappingFaultError(
            first, copied, None, self._path, number, poisoned=True, discards=discards
        )

    def lost(
        self, offset: int, length: int, copied: int, number: int = errno.EFAULT
    ) -> MappingFaultError:
        """Make the error for a copy of [offset, offset + length) that stopped."""
        damage = self.damage(copied)
        if damage is not None:
            return damage
        size = os.fstat(self._mapping.fd).st_size
        unreachable = offset + copied
        if size < offset + length:  # a page may read as zeros beyond the end of the file
            unreachable = max(unreachable, size)
        return MappingFaultError(unreachable, copied, size, self._path, number)

    def outcome(
        self, stores: Sequence[Store], results: Sequence[Receipt | tuple[int, int]]
    ) -> int | OSError:
        """Return the sequence of the last store, or the error for the first that stopped short."""
        sequence = self._mapping.sequence
        for (offset, data), result in zip(stores, results, strict=True):
            if isinstance(result, tuple):
                return self.not_stored(offset, len(data), *result)
            sequence = result.sequence
        return sequence

    def not_stored(self, offset: int, length: int, copied: int, number: int = 0) -> OSError:
        """Make the error for a store that stopped, because of a full disk or of a lost page."""
        if number in FULL:
            return self.no_room(number, offset, length)
        if number not in (0, errno.EIO, errno.EFAULT):
            return OSError(number, os.strerror(number), self._path)
        return self.lost(offset, length, copied, number or errno.EFAULT)

    def no_room(self, number: int, offset: int, length: int) -> OSError:
        """Make the error for a range for which the disk has no blocks."""
        reason = f"{os.strerror(number)} for {length} bytes at {offset}, where the file has a hole"
        return OSError(number, f"{reason}: make room, and repeat what was asked", self._path)
