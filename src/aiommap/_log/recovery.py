"""The decisions of recovery; pure.

Steps 5, 6, 10 and 11 of docs/log_format.md: where to begin, whether the segments join, and whether
the bytes behind the last good frame are torn or damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .._errors import CorruptLogError, CorruptRecordError
from .format import HEADER_BYTES, SegmentHeader


@dataclass(frozen=True, slots=True)
class Recovered:
    """What opening a log found behind its last good record.

    Attributes:
        life: number of this opening of the log; records appended by it carry it.
        sequence: the last record that was recovered; the next one gets ``sequence + 1``.
        cut_bytes: bytes cut off behind that record: they were torn, or nothing proves that they
            were durable.
        cut_records: whole records among those bytes.
        rewritten: bytes written again, because a failed flush may have left them in the page
            cache only.
        seconds: how long recovery took.
    """

    life: int
    sequence: int
    cut_bytes: int
    cut_records: int
    rewritten: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """A segment as it was found: its file, size and header."""

    path: str
    size: int
    header: SegmentHeader

    @property
    def end(self) -> int:
        """The position behind the last byte of the file."""
        return self.header.position + self.size - HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Walk:
    """How far the good frames of a segment go.

    Attributes:
        offset: offset of the END frame in the file; without one, of the first bad frame.
        sequence: sequence of the record that would come there.
        life: life of the last good frame.
        proof: the highest sequence that a frame says is durable.
        discarded: the lowest sequence that the last DISCARD frame keeps; 0 if there was none.
        ended: whether there is an END frame.
        last_crc: checksum of the last good frame, the END frame included.
        stop: offset behind that frame.
        proven: offset up to which ``proof`` says that all is durable; more may be durable.
    """

    offset: int
    sequence: int
    life: int
    proof: int
    discarded: int
    ended: bool
    last_crc: int
    stop: int
    proven: int


@dataclass(frozen=True, slots=True)
class Search:
    """What was found behind the end of the good frames.

    Attributes:
        proof: the highest sequence that a frame or header there says is durable.
        records: good records there.
        life: the highest life there.
        last_end: offset behind the last good frame there, counted on from the segment in which the
            walk ended; negative if there is none.
    """

    proof: int
    records: int
    life: int
    last_end: int


def check_joins(folder: str, segments: Sequence[FoundSegment]) -> None:
    """Check that segments follow one another in one log (L1).

    Raises:
        CorruptLogError: if one is missing, or belongs to another log.
    """
    for before, after in pairwise(segments):
        if after.header.log_id != before.header.log_id:
            raise CorruptLogError(
                folder, f"{after.path} belongs to another log than {before.path}: move it away"
            )
        joined = before.header.position < after.header.position <= before.end
        if not (joined and before.header.base < after.header.base):
            raise CorruptLogError(
                folder,
                f"a segment is missing between {before.path} and {after.path}: put it back",
            )


def check_first(folder: str, segments: Sequence[FoundSegment], first: int, last: int) -> None:
    """Check that the segments hold the first record that was not discarded (L1).

    Raises:
        CorruptLogError: if the records of the segments begin behind it, or end before it.
    """
    base = segments[0].header.base
    if base > first:
        raise CorruptLogError(
            folder,
            f"records {first} to {base - 1} are missing, and were not discarded: the oldest "
            f"segment is {segments[0].path}",
        )
    if first > last + 1:
        raise CorruptLogError(
            folder,
            f"records before {first} were discarded, and the last one found is {last}: the "
            f"segments behind {segments[-1].path} are missing",
        )


def where_to_begin(segments: Sequence[FoundSegment], proof: int) -> int:
    """Return the index of the first segment whose frames have to be checked.

    Args:
        segments: all of them, oldest first.
        proof: the highest sequence known to be durable.
    """
    at = len(segments) - 1
    durable_below = max(segments[at].header.durable_below, proof + 1)
    while at and segments[at].header.base > durable_below:
        at -= 1
    return at


def refuse_damage(path: str, walk: Walk, proof: int) -> None:
    """Raise if the record at the end of a walk is known to have been durable (L8)."""
    if proof >= walk.sequence:
        raise CorruptRecordError(path, walk.sequence, walk.offset)


def torn_bytes(walk: Walk, search: Search) -> int:
    """Return how many bytes lie between the end of the walk and the last good frame behind it."""
    return max(search.last_end - walk.offset, 0)
