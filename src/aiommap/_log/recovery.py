"""What recovery decides, from what was read; pure.

Steps 5, 6, 10 and 11 of docs/log_format.md: where to begin, whether the segments join, and whether
what lies behind the last good frame was torn or is damage.
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
        life: number of this opening of the log, as each record carries it.
        sequence: the last record that was recovered; the next one gets one more.
        cut_bytes: bytes that were torn, or that nothing proves to have been durable.
        cut_records: whole records among them.
        rewritten: bytes that were written again, as a failed flush may have left them in memory.
        seconds: how long it took.
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
        """The position behind its last byte, if it were full."""
        return self.header.position + self.size - HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Walk:
    """How far the good frames of a segment go.

    Attributes:
        offset: of the first place where nothing fits, in the file; with an END frame, of that.
        sequence: of the record that would come there.
        life: of the last good frame.
        proof: the highest sequence that a frame says is durable.
        discarded: what the last DISCARD frame said to keep from; 0 if there was none.
        ended: whether there is an END frame.
        last_crc: checksum of the last good frame, the END frame included.
        stop: offset behind that frame.
        proven: offset up to which all is durable, as ``proof`` says; more may be durable.
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
    """What was found behind the place where nothing fits."""

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
    """Check that they go down to the first record that was not discarded, and up to it (L1).

    Raises:
        CorruptLogError: if they do not.
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
    """Say from which segment on frames have to be looked at.

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
    """Raise if the record that does not fit is known to have been durable (L8)."""
    if proof >= walk.sequence:
        raise CorruptRecordError(path, walk.sequence, walk.offset)


def torn_bytes(walk: Walk, search: Search) -> int:
    """Say how many bytes lie between the last good frame and the last one behind it."""
    return max(search.last_end - walk.offset, 0)
