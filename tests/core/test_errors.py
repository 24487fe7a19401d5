"""The exceptions: one root, numbers as attributes, and messages that say what to do."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import pytest

import aiommap
from aiommap import (
    AccessModeError,
    AlignmentError,
    CorruptLogError,
    CorruptRecordError,
    FlushError,
    ForkedError,
    LogError,
    MappedFileError,
    MappingFaultError,
    OutOfBoundsError,
    OverlapError,
    ReceiptError,
    RecordsDiscardedError,
    StaleSnapshotError,
    UnsupportedError,
)


@dataclass(frozen=True)
class Case:
    """One error, with the parts of its message in order, and its attributes and other bases."""

    error: MappedFileError
    says: tuple[str, ...]
    attributes: dict[str, object] = field(default_factory=dict)
    also: tuple[type[Exception], ...] = ()


CASES = {
    "out-of-bounds": Case(
        OutOfBoundsError(90, 20, 100),
        ("[90, 110)", "only 100", "ask for less"),
        {"offset": 90, "length": 20, "limit": 100},
        (ValueError,),
    ),
    "negative-offset": Case(
        OutOfBoundsError(-1, 20, 100),
        ("20 bytes at offset -1", "cannot be negative", "100 bytes"),
        {"offset": -1, "length": 20, "limit": 100},
    ),
    "negative-length": Case(
        OutOfBoundsError(0, -2, 100),
        ("-2 bytes at offset 0", "cannot be negative", "100 bytes"),
        {"offset": 0, "length": -2, "limit": 100},
    ),
    "out-of-bounds-with-a-reason": Case(
        OutOfBoundsError(90, 20, 10, "20 bytes for a range of 10"),
        ("20 bytes for a range of 10",),
        {"offset": 90, "length": 20, "limit": 10, "reason": "20 bytes for a range of 10"},
    ),
    "alignment": Case(
        AlignmentError(8, 21),
        ("offset 21", "multiple of 8", "use 16 or 24"),
        {"required": 8, "offset": 21},
        (ValueError,),
    ),
    "access-mode": Case(
        AccessModeError("write to", "r", 'open it with "r+"'),
        ("cannot write to", 'mode "r"', 'open it with "r+"'),
        {"operation": "write to", "mode": "r", "remedy": 'open it with "r+"'},
    ),
    "overlap": Case(
        OverlapError((0, 10), (5, 20)),
        ("[0, 10)", "[5, 20)", "share bytes [5, 10)", "disjoint"),
        {"first": (0, 10), "second": (5, 20)},
        (ValueError,),
    ),
    "log": Case(LogError("a log that cannot be read"), ("a log that cannot be read",)),
    "corrupt-record": Case(
        CorruptRecordError("folder/1.log", 7, 4096),
        ("folder/1.log: record 7 at byte 4096 is damaged", "start=8"),
        {"path": "folder/1.log", "sequence": 7, "offset": 4096},
        (LogError,),
    ),
    "corrupt-log": Case(
        CorruptLogError("folder", "a segment is missing: put it back"),
        ("folder: a segment is missing: put it back",),
        {"path": "folder", "reason": "a segment is missing: put it back"},
        (LogError,),
    ),
    "records-discarded": Case(
        RecordsDiscardedError("folder", 3, 9),
        ("folder: records 3 to 8 were discarded", "start=9"),
        {"path": "folder", "sequence": 3, "first": 9, "lost": 6},
        (LogError,),
    ),
    "receipt": Case(
        ReceiptError("not a receipt of this file: ask its own"),
        ("not a receipt of this file: ask its own",),
        also=(ValueError,),
    ),
    "shrunk": Case(
        MappingFaultError(8192, 100, 4096, "data.bin"),
        ("data.bin", "byte 8192", "shrank to 4096 bytes", "100 bytes were copied", "reopen"),
        {"offset": 8192, "copied": 100, "size": 4096, "path": "data.bin", "errno": errno.EFAULT},
        (OSError,),
    ),
    "unreadable": Case(
        MappingFaultError(4095, 0, 4096, "data.bin"),
        ("data.bin", "byte 4095", "failed to provide its page", "0 bytes were copied"),
        {"offset": 4095, "copied": 0, "size": 4096, "errno": errno.EFAULT},
    ),
    "fault-of-unknown-size": Case(
        MappingFaultError(5, 0),
        ("the mapped file", "byte 5", "failed to provide its page"),
        {"offset": 5, "copied": 0, "size": None, "path": "", "errno": errno.EFAULT},
    ),
    "poisoned": Case(
        MappingFaultError(8192, 0, None, "data.bin", poisoned=True),
        ("data.bin", "byte 8192", "that the file lost", "cannot be trusted", "reopen the file"),
        {"poisoned": True, "discards": False, "errno": errno.EFAULT},
    ),
    "poisoned-by-a-full-disk": Case(
        MappingFaultError(0, 0, None, "data.bin", errno.ENOSPC, poisoned=True, discards=True),
        ("data.bin", "no room", "cannot be trusted", "reopen(discard=True)", "not flushed"),
        {"poisoned": True, "discards": True, "errno": errno.ENOSPC},
    ),
    "flush": Case(
        FlushError("data.bin", "no space left", ((0, 10), (20, 25)), errno.ENOSPC),
        ("data.bin", "no space left", "15 bytes in 2 ranges", "not known", "reopen it"),
        {
            "path": "data.bin",
            "reason": "no space left",
            "ranges": ((0, 10), (20, 25)),
            "errno": errno.ENOSPC,
            "filename": "data.bin",
        },
        (OSError,),
    ),
    "flush-found-by-us": Case(
        FlushError("data.bin", "the path was removed"),
        ("data.bin", "the path was removed", "0 bytes in 0 ranges"),
        {"ranges": (), "errno": errno.EIO},
    ),
    "forked": Case(
        ForkedError("data.bin"),
        ("data.bin", "was opened, or its hub", "was forked", "open it again"),
        {"path": "data.bin"},
    ),
    "unsupported": Case(
        UnsupportedError("punch a hole", "the file system has none", errno.ENOSYS),
        ("cannot punch a hole", "the file system has none"),
        {"operation": "punch a hole", "reason": "the file system has none", "errno": errno.ENOSYS},
        (OSError,),
    ),
    "stale-snapshot": Case(
        StaleSnapshotError("a/file", 100, 120),
        ("a/file was changed", "of 100 bytes", "it has 120", "open it again"),
        {"path": "a/file", "opened_size": 100, "size": 120, "offset": 0, "errno": errno.ESTALE},
        (MappingFaultError, OSError),
    ),
    "unsupported-by-default": Case(
        UnsupportedError("map it", "it is a pipe"),
        ("cannot map it", "it is a pipe"),
        {"errno": errno.EOPNOTSUPP},
    ),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def through_pickle(protocol):
    def clone(error):
        return pickle.loads(pickle.dumps(error, protocol))

    clone.__name__ = f"pickle-{protocol}"
    return clone


def raise_it(error):
    raise error


CLONES = [copy.copy, copy.deepcopy, *map(through_pickle, range(pickle.HIGHEST_PROTOCOL + 1))]


def test_every_public_error_has_a_case():
    public = {
        value
        for value in vars(aiommap).values()
        if isinstance(value, type) and issubclass(value, MappedFileError)
    }
    assert public - {MappedFileError} == {type(case.error) for case in CASES.values()}


def test_root_cannot_be_raised():
    with pytest.raises(TypeError, match="abstract: raise one of its subclasses"):
        MappedFileError("anything")


@every_case
def test_errors_are_caught_by_root_and_kind(case):
    assert all(isinstance(case.error, kind) for kind in (MappedFileError, *case.also))


@every_case
def test_errors_carry_their_numbers(case):
    assert {name: getattr(case.error, name) for name in case.attributes} == case.attributes


@every_case
def test_messages_say_asked_found_remedy(case):
    message, at = str(case.error), 0
    for part in case.says:
        assert part in message[at:], (part, message)
        at = message.index(part, at) + len(part)
    assert "\n" not in message


@every_case
def test_repr_shows_the_message(case):
    assert repr(case.error) == f"{type(case.error).__name__}({str(case.error)!r})"


def assert_equal(cloned, error):
    assert type(cloned) is type(error)
    assert (vars(cloned), cloned.args) == (vars(error), error.args)
    assert (str(cloned), repr(cloned)) == (str(error), repr(error))
    if isinstance(error, OSError):
        for name in ("errno", "strerror", "filename"):
            assert getattr(cloned, name) == getattr(error, name)


@every_case
@pytest.mark.parametrize("clone", CLONES, ids=lambda clone: clone.__name__)
def test_errors_survive_copies_and_pickles(case, clone):
    error = copy.copy(case.error)
    error.add_note("found by the checker")
    assert_equal(clone(error), error)


def test_errors_cross_from_another_process():
    """A process pool also adds the remote traceback as their cause."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for case in CASES.values():
            with pytest.raises(type(case.error)) as caught:
                pool.submit(raise_it, case.error).result(60)
            assert_equal(caught.value, case.error)


@pytest.mark.parametrize("name", [n for n in CASES if isinstance(CASES[n].error, OSError)])
def test_system_errors_have_number_and_text(name):
    error = CASES[name].error
    assert error.errno in errno.errorcode
    assert error.strerror
