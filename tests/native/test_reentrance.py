"""Garbage collection in the middle of a native call does no harm, and loses no store."""

from __future__ import annotations

import gc
import os
import sys

import pytest

from aiommap import PAGE_SIZE
from tests.support.internals import native

PAGES = 4000
FLAGS = native.WRITABLE | native.NOWAIT | native.RESIDENCY_VISIBLE


@pytest.fixture
def mapping(tmp_path):
    path = tmp_path / "file"
    size = PAGES * PAGE_SIZE
    path.write_bytes(bytes(size))
    fd = os.open(path, os.O_RDWR)
    made = native.Mapping(fd, size, size, FLAGS)
    made.attach(object(), native.Receipt)
    yield made
    made.close()


def test_leases_that_die_while_listed(mapping):
    """Making the list, with its thousands of tuples, collects garbage, which here is leases."""
    for count in range(200, 3000, 200):
        graph = [mapping.lease(0, 10, False) for _ in range(1000 + count)]
        cycle = [graph]
        cycle.append(cycle)
        del graph, cycle
        assert all(found == (0, 10, None) for found in mapping.oldest_leases(5000))
    gc.collect()
    assert mapping.oldest_leases(9) == []
    assert mapping.lease_count == 0


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="since Python 3.12 no native call collects garbage"
)
def test_page_stored_during_flush_stays_dirty(mapping):
    mapping.write_many([(page * PAGE_SIZE, memoryview(b"a")) for page in range(100, PAGES, 2)])
    stored = []

    def store(phase, _):
        if not stored:
            stored.append(phase)
            mapping.write_many([(0, memoryview(b"lost?"))])

    gc.collect()
    gc.callbacks.append(store)
    try:
        runs = mapping.begin_writeback(0, PAGES * PAGE_SIZE)
    finally:
        gc.callbacks.remove(store)
    mapping.end_writeback([])
    assert stored, "no garbage was collected: the test proves nothing"
    assert runs[0][0] == 100 * PAGE_SIZE
    assert mapping.dirty_runs() == [(0, PAGE_SIZE)]
