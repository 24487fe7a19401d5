"""Pages that mlock(2) keeps: reads of them take the shortest way, where other reads may wait."""

from __future__ import annotations

import os

import pytest

from aiommap import PAGE_SIZE
from tests.support.internals import Mapping, native

PAGES = 16
SIZE = PAGES * PAGE_SIZE


def test_only_locked_pages_are_read(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, SIZE)
    mapping = Mapping(fd, SIZE, 2 * SIZE, native.WRITABLE)
    mapping.populate(0, SIZE, True)

    def locked():
        """Return the pages that a read takes by the shortest way."""
        return {
            page
            for page in range(PAGES)
            if mapping.read_nowait(page * PAGE_SIZE + 1, 9) is not None
        }

    assert locked() == set()
    mapping.set_locked(2 * PAGE_SIZE, 4 * PAGE_SIZE, True)
    mapping.set_locked(4 * PAGE_SIZE, 4 * PAGE_SIZE, True)
    assert locked() == {2, 3, 4, 5, 6, 7}
    assert mapping.read_nowait(2 * PAGE_SIZE, 6 * PAGE_SIZE) == bytes(6 * PAGE_SIZE)
    assert mapping.read_nowait(2 * PAGE_SIZE - 1, 2) is None
    mapping.set_locked(3 * PAGE_SIZE, 2 * PAGE_SIZE, False)
    assert locked() == {2, 5, 6, 7}
    mapping.remapping = True
    assert locked() == set()
    mapping.remapping = False
    assert locked() == {2, 5, 6, 7}
    mapping.set_locked(2 * SIZE, 0, True)
    for offset, length in ((-1, 1), (0, 2 * SIZE + 1), (2 * SIZE, 1), (1, 2**63 - 1)):
        with pytest.raises(ValueError, match="never mapped"):
            mapping.set_locked(offset, length, True)
    mapping.close()
