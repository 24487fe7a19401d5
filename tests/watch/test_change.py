"""Naming the difference of two states, merging changes, and the buffer of a subscriber."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiommap import Change, ChangeKind, FileState
from tests.support.internals import ChangeBuffer, classify, merge

BASE = FileState(
    device=1, inode=2, size=100, mode=0o100644, links=1, user=0, group=0, mtime_ns=10, ctime_ns=10
)
#: For each field: another value, and the kind of a change of that field alone.
FIELDS = {
    "device": (7, ChangeKind.REPLACED),
    "inode": (7, ChangeKind.REPLACED),
    "size": (101, ChangeKind.GROWN),
    "mtime_ns": (11, ChangeKind.MODIFIED),
    "mode": (0o100600, ChangeKind.METADATA),
    "links": (2, ChangeKind.METADATA),
    "user": (1, ChangeKind.METADATA),
    "group": (1, ChangeKind.METADATA),
    "ctime_ns": (11, ChangeKind.CHANGED),
}
PRECEDENCE = [
    ChangeKind.CREATED,
    ChangeKind.REMOVED,
    ChangeKind.REPLACED,
    ChangeKind.TRUNCATED,
    ChangeKind.GROWN,
    ChangeKind.MODIFIED,
    ChangeKind.METADATA,
    ChangeKind.CHANGED,
]


def combinations():
    for count in range(1, len(FIELDS) + 1):
        yield from itertools.combinations(FIELDS, count)


def test_kinds_are_in_order_of_precedence():
    assert set(PRECEDENCE) == set(ChangeKind)


def test_differences_have_the_first_kind():
    assert set(FIELDS) == set(FileState.__slots__)
    for names in combinations():
        new = replace(BASE, **{name: FIELDS[name][0] for name in names})
        expected = min((FIELDS[name][1] for name in names), key=PRECEDENCE.index)
        assert classify(BASE, new) is expected, names


def test_shorter_file_is_truncated_first():
    for names in combinations():
        new = replace(BASE, **{name: FIELDS[name][0] for name in names})
        new = replace(new, size=99)
        moved = {"device", "inode"} & set(names)
        assert classify(BASE, new) is (ChangeKind.REPLACED if moved else ChangeKind.TRUNCATED)


def test_no_file_before_or_after():
    assert classify(None, BASE) is ChangeKind.CREATED
    assert classify(BASE, None) is ChangeKind.REMOVED
    assert classify(None, None) is None
    assert classify(BASE, replace(BASE)) is None


def change(old, new, path="/p", merged=0):
    return Change(classify(old, new), path, old, new, merged)


def states(count):
    """Make states of one file, each with later times than the one before."""
    return [replace(BASE, mtime_ns=i, ctime_ns=i) for i in range(count)]


def test_merge_keeps_first_old_and_last_new():
    a, b, c = BASE, replace(BASE, size=50), replace(BASE, size=200)
    merged = merge(change(a, b, merged=2), change(b, c, merged=3))
    assert (merged.kind, merged.old, merged.new, merged.merged) == (ChangeKind.GROWN, a, c, 6)


@pytest.mark.parametrize("inode", [2, 3], ids=["same-inode", "other-inode"])
def test_merge_removed_created_is_replaced(inode):
    again = replace(BASE, inode=inode, mtime_ns=20)
    merged = merge(change(BASE, None), change(None, again))
    assert (merged.kind, merged.old, merged.new) == (ChangeKind.REPLACED, BASE, again)


def test_merge_written_and_set_back():
    written, back = replace(BASE, mtime_ns=20, ctime_ns=20), replace(BASE, ctime_ns=30, mode=1)
    assert merge(change(BASE, written), change(written, back)).kind is ChangeKind.CHANGED
    copied = replace(BASE, ctime_ns=20)
    assert merge(change(BASE, copied), change(copied, back)).kind is ChangeKind.CHANGED
    mode, again = replace(BASE, mode=1, ctime_ns=20), replace(BASE, ctime_ns=30)
    assert merge(change(BASE, mode), change(mode, again)).kind is ChangeKind.METADATA


def test_merge_created_removed_is_removed():
    merged = merge(change(None, BASE), change(BASE, None))
    assert (merged.kind, merged.old, merged.new) == (ChangeKind.REMOVED, None, None)


def test_buffer_with_room_keeps_apart():
    buffer = ChangeBuffer(3)
    s = states(4)
    pushed = [change(a, b) for a, b in itertools.pairwise(s)]
    for one in pushed:
        buffer.push(one)
    assert [buffer.pop() for _ in range(len(buffer))] == pushed


def test_buffer_full_merges_into_newest():
    buffer = ChangeBuffer(2)
    s = states(6)
    for a, b in itertools.pairwise(s):
        buffer.push(change(a, b))
    first, last = buffer.pop(), buffer.pop()
    assert (first.old, first.new, first.merged) == (s[0], s[1], 0)
    assert (last.old, last.new, last.merged) == (s[1], s[5], 3)
    assert not buffer


def test_buffer_full_takes_another_path():
    buffer = ChangeBuffer(1)
    a, b, c = states(3)
    buffer.push(change(a, b, "/one"))
    buffer.push(change(a, b, "/two"))
    buffer.push(change(b, c, "/one"))
    assert [(one.path, one.merged) for one in (buffer.pop(), buffer.pop())] == [
        ("/one", 1),
        ("/two", 0),
    ]


@settings(deadline=None)
@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.sampled_from(["/a", "/b", "/c", None]), max_size=60),
)
def test_buffer_loses_only_states_between(limit, steps):
    """After any pushes and pops, each old state is the new one before, and the counts add up."""
    buffer = ChangeBuffer(limit)
    at = dict.fromkeys("/a /b /c".split(), BASE)
    seen = dict(at)
    pushed = fetched = 0

    def fetch():
        nonlocal fetched
        one = buffer.pop()
        assert one.old == seen[one.path]
        seen[one.path] = one.new
        fetched += 1 + one.merged

    for number, path in enumerate(steps):
        if path is None:
            if buffer:
                fetch()
            continue
        new = replace(at[path], mtime_ns=100 + number)
        buffer.push(change(at[path], new, path))
        at[path] = new
        pushed += 1
        assert len(buffer) <= max(limit, 2) + 2
    while buffer:
        fetch()
    assert (seen, fetched) == (at, pushed)
