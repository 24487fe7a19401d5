"""Telling our own changes of a file from those of others."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace

import pytest

from aiommap import ChangeKind, FileState
from tests.support.internals import (
    Identity,
    OwnActivity,
    OwnChanges,
    StatDiffer,
    WatchedPath,
    classify,
    size_is_stable,
    stat_differ,
    subtract_own,
    watched_path,
)

OLD = FileState(
    device=1, inode=2, size=100, mode=0o100644, links=1, user=0, group=0, mtime_ns=10, ctime_ns=10
)
TOUCHED = replace(OLD, mtime_ns=11, ctime_ns=11)
INODE = Identity(1, 2)
#: Truncating a file of this size takes some milliseconds.
SIZE_OF_CUT = 64 << 20


@dataclass
class FakeMapping:
    file_end: int = 100
    grown: int = 0
    growing: bool = False
    sequence: int = 0
    writable_leases: int = 0
    ended_leases: int = 0
    inline_pwrites: int = 0
    pwriting: bool = False


def opened(identity=INODE, *, size_changed=False):
    return OwnActivity(FakeMapping(), identity, size_changed=size_changed)


def is_own(old, new, before, after, *, foreign):
    return subtract_own(old, new, before, after, event_is_foreign=foreign) == new


def judge(act, new=TOUCHED, *, foreign=False):
    """Tell whether the things that ``act`` does to a file of ours explain a difference."""
    own, file = OwnChanges(), opened()
    own.add(file)
    before = own.sample(INODE)
    act(own, file)
    return is_own(OLD, new, before, own.sample(INODE), foreign=foreign)


def store(own, file):
    file.mapping.sequence += 1


def call(own, file):
    file.mapping.sequence += 1
    file.offloaded_writes += 1


def call_inline(own, file):
    file.mapping.sequence += 1
    file.mapping.inline_pwrites += 1


def resize(own, file):
    file.size_changes += 2
    file.mapping.file_end = 200


def nothing(own, file):
    pass


def test_no_files_of_ours_explain_nothing():
    own = OwnChanges()
    assert own.sample(INODE) is None
    assert not is_own(OLD, TOUCHED, None, None, foreign=False)


def test_idle_file_explains_nothing():
    assert not judge(nothing)


@pytest.mark.parametrize("foreign", [False, True], ids=["polled", "event"])
def test_mapped_stores_explain_times(foreign):
    assert judge(store, foreign=foreign) is not foreign


@pytest.mark.parametrize("act", [call, call_inline])
@pytest.mark.parametrize("foreign", [False, True], ids=["polled", "event"])
def test_calls_explain_times_with_an_event(act, foreign):
    assert judge(act, foreign=foreign)


@pytest.mark.parametrize("name", ["queued_bytes", "durable_stores"])
def test_calls_under_way_explain_times(name):
    assert judge(lambda own, file: setattr(file, name, 1), foreign=True)


def test_inline_call_under_way_explains_times():
    assert judge(lambda own, file: setattr(file.mapping, "pwriting", True), foreign=True)


@pytest.mark.parametrize("name", ["touches", "touching"])
def test_touched_pages_explain_times(name):
    assert judge(lambda own, file: setattr(file, name, 1))
    assert not judge(lambda own, file: setattr(file, name, 1), foreign=True)


def test_writable_memory_explains_times():
    def lend(own, file):
        file.mapping.writable_leases = 1

    assert judge(lend)
    assert not judge(lend, foreign=True)


def test_resize_explains_its_own_size_only():
    assert judge(resize, replace(TOUCHED, size=200), foreign=True)
    assert not judge(resize, replace(TOUCHED, size=300))
    assert not judge(store, replace(TOUCHED, size=200))


def test_size_set_back_by_others():
    assert not judge(resize, replace(TOUCHED, size=100))


def test_size_of_a_file_never_resized():
    own, file, other = OwnChanges(), opened(), opened()
    own.add(file)
    own.add(other)
    before = own.sample(INODE)
    resize(own, file)
    new = replace(TOUCHED, size=100)
    assert not is_own(OLD, new, before, own.sample(INODE), foreign=False)


@pytest.mark.parametrize("name", ["mode", "links", "user", "group", "inode", "device"])
def test_owner_and_permission_are_never_ours(name):
    for act in (store, call, resize):
        assert not judge(act, replace(TOUCHED, **{name: 77}))


def test_stores_do_not_hide_others_changes():
    own, file = OwnChanges(), opened()
    own.add(file)
    before = own.sample(INODE)
    store(own, file)
    new = replace(TOUCHED, mode=0o100600)
    old = subtract_own(OLD, new, before, own.sample(INODE), event_is_foreign=False)
    assert classify(old, new) is ChangeKind.METADATA


def test_closed_file_still_counts():
    def close(own, file):
        other = opened()
        own.add(other)
        store(own, file)
        own.remove(file)

    assert judge(close)


def test_close_of_idle_file_beside_another():
    own, file, other = OwnChanges(), opened(), opened()
    other.mapping.sequence = 5
    own.add(file)
    own.add(other)
    before = own.sample(INODE)
    own.remove(other)
    assert not is_own(OLD, TOUCHED, before, own.sample(INODE), foreign=False)


def test_close_of_last_file_explains_times():
    assert judge(lambda own, file: own.remove(file))


def test_open_explains_nothing():
    own = OwnChanges()
    before = own.sample(INODE)
    own.add(opened())
    assert not is_own(OLD, TOUCHED, before, own.sample(INODE), foreign=False)
    own.add(opened(size_changed=True))
    assert is_own(OLD, TOUCHED, before, own.sample(INODE), foreign=True)


def test_remove_of_unknown_does_nothing():
    own = OwnChanges()
    own.remove(opened())
    assert own.sample(INODE) is None


def grow(own, file):
    file.mapping.grown = file.mapping.file_end = 200


def test_growth_explains_its_own_size_only():
    assert judge(grow, replace(TOUCHED, size=200), foreign=True)
    assert not judge(grow, replace(TOUCHED, size=300))
    assert not judge(grow, replace(TOUCHED, size=100))


def test_memory_given_back_explains_times():
    def lend(own, file):
        file.mapping.ended_leases += 1

    assert judge(lend)
    assert not judge(lend, foreign=True)


def test_closed_files_size_counts_once():
    own, file, other = OwnChanges(), opened(), opened(size_changed=True)
    own.add(file)
    own.add(other)
    before = own.sample(INODE)
    resize(own, file)
    own.remove(file)
    after = own.sample(INODE)
    new = replace(TOUCHED, size=200)
    assert is_own(OLD, new, before, after, foreign=True)
    assert subtract_own(OLD, new, after, own.sample(INODE), event_is_foreign=True).size == OLD.size
    shorter = replace(TOUCHED, size=150)  # shorter than what we left, longer than what it was
    old = subtract_own(OLD, shorter, before, after, event_is_foreign=True)
    assert classify(old, shorter) is ChangeKind.TRUNCATED


@pytest.mark.parametrize("act", [resize, grow], ids=["resize", "growth"])
def test_size_changing_decides_nothing(act):
    own, file = OwnChanges(), opened()
    own.add(file)
    before = own.sample(INODE)
    assert size_is_stable(before, own.sample(INODE))
    act(own, file)
    after = own.sample(INODE)
    assert not size_is_stable(before, after)
    assert size_is_stable(after, own.sample(INODE))
    file.mapping.growing = True
    assert not size_is_stable(own.sample(INODE), own.sample(INODE))


def test_resize_ending_meanwhile_stats_again(tmp_path, monkeypatch):
    """The first stat finds a size that no sample has: a resize of ours came in between."""
    path, found = tmp_path / "file", []
    path.write_bytes(bytes(100))
    inode = Identity.of(path.stat())
    own, file, watched = OwnChanges(), opened(inode), WatchedPath(str(path))
    own.add(file)
    differ = StatDiffer(own, lambda _, change: found.append(change), lambda _: None)
    differ.begin(watched)

    def change(size):
        os.truncate(path, size)
        file.size_changes += 2
        file.mapping.file_end = size

    def stat_and_resize(name):
        found = os.stat(name)
        if found.st_size == 300:
            change(200)
        return found

    monkeypatch.setattr(stat_differ, "stat_of", stat_and_resize)
    change(300)
    differ.compare(watched, "poll")
    assert not found
    assert watched.state.size == 200
    os.truncate(path, 300)  # by somebody else
    monkeypatch.undo()
    differ.compare(watched, "poll")
    assert [(one.kind, one.old.size) for one in found] == [(ChangeKind.GROWN, 200)]


def test_resize_during_first_state_is_ours(tmp_path, monkeypatch):
    path, found = tmp_path / "file", []
    path.write_bytes(bytes(100))
    own, file = OwnChanges(), opened(Identity.of(path.stat()))
    own.add(file)
    differ = StatDiffer(own, lambda _, change: found.append(change), lambda _: None)

    def stat_and_resize(name):
        found = os.stat(name)
        if found.st_size == 100:
            os.truncate(path, 200)
            file.size_changes += 2
            file.mapping.file_end = 200
        return found

    monkeypatch.setattr(stat_differ, "stat_of", stat_and_resize)
    watched = WatchedPath(str(path))
    differ.begin(watched)
    differ.compare(watched, "event")
    assert not found
    assert watched.state.size == 200


def test_event_before_first_state_is_ours(tmp_path):
    """The event of our write is pending when the state is taken; later stores move the times."""
    path, found = tmp_path / "file", []
    path.write_bytes(bytes(100))
    own, file, watched = OwnChanges(), opened(Identity.of(path.stat())), WatchedPath(str(path))
    own.add(file)
    differ = StatDiffer(own, lambda _, change: found.append(change), lambda _: None)
    file.offloaded_writes += 1
    differ.begin(watched)
    file.mapping.sequence += 1
    os.utime(path)
    differ.compare(watched, "event")
    assert not found


@pytest.fixture
def compared(tmp_path):
    """A file of ours, a function that compares its path, and the changes that were found."""
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    found, own, file = [], OwnChanges(), opened(Identity.of(path.stat()))
    own.add(file)
    watched = WatchedPath(str(path))
    differ = StatDiffer(own, lambda _, change: found.append(change), lambda _: None)
    differ.begin(watched)

    def compare(source):
        assert own  # keeps it alive: the differ has only a weak reference
        return differ.compare(watched, source)

    return path, file, compare, found


def test_event_after_a_poll_is_of_what_the_poll_saw(compared):
    path, file, compare, found = compared
    before = path.stat().st_mtime_ns
    file.mapping.sequence += 1
    os.utime(path)  # by somebody else
    compare("poll")
    assert not found
    compare("event")
    compare("event")
    assert [(one.kind, one.old.mtime_ns) for one in found] == [(ChangeKind.MODIFIED, before)]
    assert found[0].new.mtime_ns == path.stat().st_mtime_ns


def test_event_long_after_a_poll_is_of_something_else(compared, monkeypatch):
    path, file, compare, found = compared
    monkeypatch.setattr(watched_path, "LATE_EVENT_SECONDS", 0)
    file.mapping.sequence += 1
    os.utime(path)
    compare("poll")
    compare("event")
    assert not found


def test_event_of_ours_after_a_poll_tells_nothing(compared):
    path, file, compare, found = compared
    file.mapping.sequence += 1
    os.utime(path)
    compare("poll")
    file.offloaded_writes += 1
    compare("event")
    assert not found


def test_cut_under_way_is_not_compared(compared):
    """If a file is shorter but has its old times, truncate(2) has not ended."""
    path, _, compare, found = compared
    with path.open("r+b") as other:
        other.write(bytes(SIZE_OF_CUT))
    compare("poll")
    found.clear()
    states = []

    def cut():
        os.truncate(path, 10)
        states.append(path.stat())

    thread = threading.Thread(target=cut)
    thread.start()
    while not states:
        compare("poll")
    thread.join()
    compare("poll")
    assert [(one.kind, one.new.mtime_ns) for one in found] == [
        (ChangeKind.TRUNCATED, states[0].st_mtime_ns)
    ]
