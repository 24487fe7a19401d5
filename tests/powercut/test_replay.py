"""The replay against its rules, R1 to R5, on logs made by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.powercut.records import (
    DIRECTORY,
    Create,
    Rename,
    Resize,
    SyncBegin,
    SyncEnd,
    Unlink,
    Write,
)
from tests.powercut.replay import SECTOR, Disk, nothing_survives

FILE = 7
OLD, NEW = b"o" * SECTOR, b"n" * SECTOR


def all_survives(choices):
    return choices - 1


def sync(inode, ticket=0, *, ok=True):
    return [SyncBegin(ticket, inode), SyncEnd(ticket, ok)]


#: A file of four old sectors, all of it certain.
MADE = [
    Create("file", FILE),
    Write(FILE, 0, 4 * OLD),
    *sync(FILE),
    *sync(DIRECTORY),
]


def cut(records, choose):
    disk = Disk()
    disk.follow([*MADE, *records])
    return disk.power_cut(choose)


def outcomes(records):
    """Everything that a hundred power cuts left."""
    rng = random.Random(1)
    return [cut(records, rng.randrange) for _ in range(100)]


def test_synced_is_certain():
    assert all(disk == {"file": 4 * OLD} for disk in outcomes([]))
    overwritten = [Write(FILE, SECTOR, NEW), *sync(FILE, 1)]
    assert all(disk == {"file": OLD + NEW + 2 * OLD} for disk in outcomes(overwritten))


def test_unsynced_writes_tear_and_reorder():  # R1
    written = [Write(FILE, 0, 2 * NEW), Write(FILE, 3 * SECTOR, NEW)]
    found = {disk["file"] for disk in outcomes(written)}
    choices = [
        (first, second, last)
        for first in (OLD, NEW)
        for second in (OLD, NEW)
        for last in (OLD, NEW)
    ]
    assert found == {first + second + OLD + last for first, second, last in choices}
    assert cut(written, nothing_survives) == {"file": 4 * OLD}
    assert cut(written, all_survives) == {"file": 2 * NEW + OLD + NEW}


def test_sector_is_never_torn():  # R1
    written = [Write(FILE, 10, b"ab"), Write(FILE, 11, b"c")]
    found = {disk["file"][9:13] for disk in outcomes(written)}
    assert found == {b"oooo", b"oabo", b"oaco"}


def test_unsynced_size_may_be_lost():  # R2
    grown = [Write(FILE, 4 * SECTOR, NEW)]
    assert {len(disk["file"]) for disk in outcomes(grown)} == {4 * SECTOR, 5 * SECTOR}
    assert {disk["file"][4 * SECTOR :] for disk in outcomes(grown)} == {b"", bytes(SECTOR), NEW}
    cut_off = [Resize(FILE, 10)]
    assert {len(disk["file"]) for disk in outcomes(cut_off)} == {10, 4 * SECTOR}
    assert cut([*cut_off, *sync(FILE, 1), Resize(FILE, 20), *sync(FILE, 2)], all_survives) == {
        "file": OLD[:10] + bytes(10)
    }


def test_directory_sync_alone_keeps_a_name():  # R3
    created = [Create("new", 8), Write(8, 0, NEW), *sync(8, 1)]
    assert cut(created, nothing_survives).keys() == {"file"}
    assert cut(created, all_survives)["new"] == NEW
    assert cut([*created, *sync(DIRECTORY, 2)], nothing_survives)["new"] == NEW


def test_rename_is_whole():  # R3
    replaced = [Create("new", 8), Write(8, 0, NEW), *sync(8, 1), Rename("new", "file", 8)]
    found = [disk["file"] for disk in outcomes(replaced)]
    assert set(found) == {4 * OLD, NEW}
    assert cut([*replaced, *sync(DIRECTORY, 2)], nothing_survives) == {"file": NEW}


def test_unlinked_name_may_come_back():  # R3
    assert cut([Unlink("file")], nothing_survives) == {"file": 4 * OLD}
    assert cut([Unlink("file"), *sync(DIRECTORY, 1)], nothing_survives) == {}


@pytest.mark.parametrize("length", [0, 1, 2])
def test_sync_covers_only_what_came_before(length):  # R4
    begun, answered = sync(FILE, 1)
    meanwhile = [Write(FILE, 0, NEW), begun, Write(FILE, SECTOR, NEW), answered]
    kept = {0: 4 * OLD, 1: 4 * OLD, 2: NEW + 3 * OLD}[length]
    assert cut(meanwhile[: 2 + length], nothing_survives) == {"file": kept}


def test_failed_sync_is_not_made_up_later():  # R5
    failed = [Write(FILE, 0, NEW), *sync(FILE, 1, ok=False), *sync(FILE, 2)]
    assert cut(failed, nothing_survives) == {"file": 4 * OLD}
    assert (
        cut([*failed, Write(FILE, 0, NEW), *sync(FILE, 3)], nothing_survives)["file"][:SECTOR]
        == NEW
    )
    named = [Create("new", 8), *sync(DIRECTORY, 1, ok=False), *sync(DIRECTORY, 2)]
    assert "new" not in cut(named, nothing_survives)


EFFECTS = st.one_of(
    st.builds(Write, st.just(FILE), st.integers(0, 3000), st.binary(max_size=1500)),
    st.builds(Resize, st.just(FILE), st.integers(0, 4000)),
)


@given(st.lists(EFFECTS, max_size=8), st.randoms(use_true_random=False))
def test_sync_makes_disk_equal_file(effects, rng):
    content = bytearray(4 * OLD)
    for effect in effects:
        if isinstance(effect, Write):
            content.extend(bytes(max(0, effect.offset + len(effect.data) - len(content))))
            content[effect.offset : effect.offset + len(effect.data)] = effect.data
        else:
            del content[effect.size :]
            content.extend(bytes(effect.size - len(content)))
    assert cut(effects, all_survives) == {"file": content}
    assert cut([*effects, *sync(FILE, 1)], rng.randrange) == {"file": content}
