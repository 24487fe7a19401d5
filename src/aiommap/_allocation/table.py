"""Allocated ranges, and the table that says which bytes are allocated and by which object.

Pure: no file, no loop, no mutex. ``_allocation/allocator`` holds its mutex during each call.

Invariants.
  1  The span [start, end) is at all times the disjoint union of three sets: the free bytes, the
     held ranges, and the unclaimed ranges, which were allocated before the state was saved.
  2  A range is valid while the table holds that very object. A copy is not valid. A range that
     was freed or split stays invalid, even if the same bytes are handed out again.
  3  A call that raises has changed nothing.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn, Protocol, Self, SupportsIndex, final

from .._arguments import check_range, integer
from .._errors import ReceiptError, not_copied
from .._ranges import RangeSet, align_up

_MAGIC = b"aioAlloc"
_VERSION = 1
#: Magic, version, start, end, alignment, number of ranges; then (offset, length) of each range in
#: ascending order; then the CRC-32 of all that. Little-endian.
_HEADER = struct.Struct("<8sIQQQQ")
_PAIR = struct.Struct("<QQ")
_CHECKSUM = struct.Struct("<I")


class Owner(Protocol):
    """The methods of an allocator that its ranges use."""

    def is_valid(self, allocated: AllocatedRange) -> bool: ...

    def split(
        self, allocated: AllocatedRange, position: SupportsIndex
    ) -> tuple[AllocatedRange, AllocatedRange]: ...


@final
class AllocatedRange:
    """Bytes of one file that belong to the holder of this object; made by ``RangeAllocator``.

    The object is immutable, compares by identity, and belongs to its allocator and so to its file.
    It is valid until it is freed or split, or its allocator is closed. It cannot be copied or
    pickled: after the file was opened again, ``RangeAllocator.claim`` makes a new object for the
    same bytes.

    Concurrency: safe from several threads.
    """

    __slots__ = ("__weakref__", "_length", "_offset", "_owner")

    def __init__(self, owner: Owner, offset: int, length: int) -> None:
        self._owner = owner
        self._offset = offset
        self._length = length

    @property
    def offset(self) -> int:
        """First byte, from the start of the file."""
        return self._offset

    @property
    def length(self) -> int:
        """Number of bytes; at least 1."""
        return self._length

    @property
    def end(self) -> int:
        """First byte behind the range, from the start of the file."""
        return self._offset + self._length

    @property
    def valid(self) -> bool:
        """Whether the range was neither freed nor split, and its allocator is not closed."""
        return self._owner.is_valid(self)

    def split_at(self, position: SupportsIndex) -> tuple[AllocatedRange, AllocatedRange]:
        """Replace this range by two that meet at a position and cover the same bytes.

        Args:
            position: length of the first one, in bytes; 0 < position < length. To split at a page
                boundary of the file: ``align_up(r.offset + n) - r.offset``.
        Raises:
            OutOfBoundsError: if the position is outside the range, which then stays valid.
            ValueError: if one of the two would be empty; this range then stays valid.
            ReceiptError: if this range was freed or split.
            anyio.ClosedResourceError: if its allocator or the file is closed.
        """
        return self._owner.split(self, position)

    def __reduce__(self) -> NoReturn:
        remedy = "claim() it from an allocator made from the saved state"
        raise not_copied(self, f"keep its offset and length, and {remedy}")

    def __repr__(self) -> str:
        state = "valid" if self.valid else "not valid"
        return f"<AllocatedRange [{self._offset}, {self.end}) {state}>"


@dataclass(frozen=True, slots=True)
class Layout:
    """The contents of a saved state: the span, the alignment, and the allocated ranges.

    It has the ranges and not the gaps between them: gaps would not show where one range ends and
    its neighbour begins, so a claim could not be checked against a range that was handed out.
    """

    start: int
    end: int
    alignment: int
    allocated: tuple[tuple[int, int], ...] = ()

    def encode(self) -> bytes:
        """Write the layout as bytes: 48, and 16 for each range."""
        body = _HEADER.pack(
            _MAGIC, _VERSION, self.start, self.end, self.alignment, len(self.allocated)
        ) + b"".join(_PAIR.pack(*pair) for pair in self.allocated)
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def decode(cls, state: bytes) -> Self:
        """Read a layout; ValueError unless it is one that ``encode`` could have written."""
        if not state.startswith(_MAGIC):
            raise ValueError("these bytes are not the saved state of an allocator")
        if len(state) < _HEADER.size + _CHECKSUM.size:
            raise ValueError(f"the saved state is cut off after {len(state)} bytes")
        body, checksum = state[: -_CHECKSUM.size], state[-_CHECKSUM.size :]
        if _CHECKSUM.unpack(checksum) != (zlib.crc32(body),):
            raise ValueError(f"the saved state of {len(state)} bytes is damaged: its CRC is wrong")
        _, version, start, end, alignment, count = _HEADER.unpack_from(body)
        if version != _VERSION:
            raise ValueError(f"the saved state has version {version}, and only 1 is known")
        table = body[_HEADER.size :]
        if len(table) != count * _PAIR.size:
            raise ValueError(f"the saved state has no room for the {count} ranges it announces")
        layout = cls(start, end, alignment, tuple(_PAIR.iter_unpack(table)))
        layout._check_consistent()
        return layout

    def _check_consistent(self) -> None:
        """Raise unless the layout makes sense: a checksum only says that the bytes are whole."""
        check_alignment(self.alignment)
        at = self.start
        for offset, length in self.allocated:
            if offset < at or length < 1:
                raise ValueError(f"the saved state has an impossible range at {offset}")
            at = offset + length
        if at > self.end:
            raise ValueError(f"the saved state reaches to {at}, beyond its own end {self.end}")


def check_alignment(alignment: int) -> None:
    """Raise ValueError unless it is a power of two."""
    if alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment is {alignment}: use a power of two, for example PAGE_SIZE")


#: A block has at most this many runs.
BLOCK_RUNS = 512


class _Block:
    """Neighbouring free runs; ``max_room`` is an upper bound for the room of each of them."""

    __slots__ = ("_alignment", "ends", "max_room", "starts")

    def __init__(self, starts: list[int], ends: list[int], alignment: int) -> None:
        self._alignment = alignment
        self.starts = starts
        self.ends = ends
        self.max_room = 0
        self.measure()

    def measure(self) -> int:
        """Make ``max_room`` exact, and return it."""
        self.max_room = max(map(self._room, self.starts, self.ends))
        return self.max_room

    def replace(self, at: int, until: int, runs: list[tuple[int, int]]) -> None:
        """Put runs in the place of others."""
        self.starts[at:until] = [low for low, _ in runs]
        self.ends[at:until] = [end for _, end in runs]
        self.max_room = max(self.max_room, *(self._room(*run) for run in runs), 0)

    def split_off(self) -> _Block:
        """Take the upper half out, and return it as a block of its own."""
        half = len(self.starts) // 2
        other = _Block(self.starts[half:], self.ends[half:], self._alignment)
        del self.starts[half:], self.ends[half:]
        self.measure()
        return other

    def _room(self, low: int, end: int) -> int:
        return max(end - align_up(low, self._alignment), 0)


class _FreeRuns:
    """The free bytes: disjoint runs in ascending order, no two of which touch.

    Blocks hold the runs. A change of one run therefore moves only the runs of its block, and a
    search skips a block without a look at its runs.

    Args:
        runs: ascending; may touch.
        alignment: offsets of ranges are multiples of this. The *room* of a run is the number of its
            bytes behind its first such offset.
    """

    __slots__ = ("_alignment", "_blocks", "_firsts", "count")

    def __init__(self, runs: Iterable[tuple[int, int]], alignment: int) -> None:
        self._alignment = alignment
        self._blocks: list[_Block] = []
        #: Where the first run of each block begins.
        self._firsts: list[int] = []
        whole = list(RangeSet(runs))
        self.count = len(whole)
        for at in range(0, len(whole), BLOCK_RUNS // 2):
            part = whole[at : at + BLOCK_RUNS // 2]
            block = _Block([low for low, _ in part], [end for _, end in part], alignment)
            self._insert(len(self._blocks), block)

    def total(self) -> int:
        """Return the number of bytes."""
        return sum(sum(block.ends) - sum(block.starts) for block in self._blocks)

    def max_room(self) -> int:
        """Return the room of the run that has the most."""
        while self._blocks:
            block = max(self._blocks, key=lambda block: block.max_room)
            believed = block.max_room
            if block.measure() == believed:
                return believed
        return 0

    def take(self, length: int) -> int | None:
        """Take out the lowest aligned bytes that fit; return their offset, or None if none fit."""
        for number, block in enumerate(self._blocks):
            if block.max_room < length:
                continue
            for at, (low, end) in enumerate(zip(block.starts, block.ends, strict=True)):
                offset = align_up(low, self._alignment)
                if end - offset >= length:
                    kept = [(low, offset), (offset + length, end)]
                    self._replace(number, at, at + 1, [run for run in kept if run[0] < run[1]])
                    return offset
            block.measure()
        return None

    def add(self, offset: int, end: int) -> None:
        """Put back bytes that are not free; free neighbours become one run."""
        if not self._blocks:
            self._insert(0, _Block([offset], [end], self._alignment))
            self.count += 1
            return
        number = max(bisect_right(self._firsts, offset) - 1, 0)
        block = self._blocks[number]
        at = until = bisect_right(block.starts, offset)
        if at and block.ends[at - 1] == offset:
            at -= 1
            offset = block.starts[at]
        if until < len(block.starts):
            if block.starts[until] == end:
                end = block.ends[until]
                until += 1
        elif number + 1 < len(self._blocks) and self._firsts[number + 1] == end:
            end = self._blocks[number + 1].ends[0]
            self._replace(number + 1, 0, 1, [])
        self._replace(number, at, until, [(offset, end)])

    def _replace(self, number: int, at: int, until: int, runs: list[tuple[int, int]]) -> None:
        """Put runs in the place of others of a block."""
        block = self._blocks[number]
        block.replace(at, until, runs)
        self.count += len(runs) - (until - at)
        if not block.starts:
            del self._blocks[number], self._firsts[number]
            return
        self._firsts[number] = block.starts[0]
        if len(block.starts) > BLOCK_RUNS:
            self._insert(number + 1, block.split_off())

    def _insert(self, number: int, block: _Block) -> None:
        self._blocks.insert(number, block)
        self._firsts.insert(number, block.starts[0])


class AllocationTable:
    """The free and the allocated ranges of one span; first fit."""

    __slots__ = (
        "_free",
        "_held",
        "_owner",
        "_unclaimed",
        "alignment",
        "end",
        "remaining",
        "start",
    )

    def __init__(self, owner: Owner, layout: Layout) -> None:
        self._owner = owner
        self.start, self.end, self.alignment = layout.start, layout.end, layout.alignment
        self._unclaimed = dict(layout.allocated)
        self._held: dict[int, AllocatedRange] = {}
        ends = [self.start, *(offset + length for offset, length in layout.allocated)]
        starts = [*(offset for offset, _ in layout.allocated), self.end]
        self._free = _FreeRuns(zip(ends, starts, strict=True), self.alignment)
        #: Free bytes.
        self.remaining = self._free.total()

    def copy(self) -> Callable[[], Layout]:
        """Copy the allocated ranges, and return a function that makes their layout in any thread.

        Copying is quick; making the layout takes long if there are many ranges.
        """
        held, unclaimed = self._held.copy(), self._unclaimed.copy()

        def make() -> Layout:
            lengths = {offset: allocated.length for offset, allocated in held.items()}
            allocated = tuple(sorted({**unclaimed, **lengths}.items()))
            return Layout(self.start, self.end, self.alignment, allocated)

        return make

    def layout(self) -> Layout:
        """Return all allocated ranges, held or not."""
        return self.copy()()

    def unclaimed(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of the allocated ranges that nobody holds, in ascending order."""
        return tuple(sorted(self._unclaimed.items()))

    def capacity(self) -> int:
        """Length of the longest range that could be handed out if everything were free."""
        return max(0, self.end - align_up(self.start, self.alignment))

    def largest(self) -> int:
        """Length of the longest range that can be handed out."""
        return self._free.max_room()

    def runs(self) -> int:
        """Number of free runs."""
        return self._free.count

    def take(self, length: int) -> AllocatedRange | None:
        """Hand out the lowest aligned free bytes that fit; None if no run is long enough."""
        offset = self._free.take(length) if length <= self.remaining else None
        if offset is None:
            return None
        self.remaining -= length
        return self._hold(offset, length)

    def free(self, allocated: AllocatedRange) -> None:
        """Take a range back; free neighbours become one run."""
        self.check(allocated)
        del self._held[allocated.offset]
        self._free.add(allocated.offset, allocated.end)
        self.remaining += allocated.length

    def split(
        self, allocated: AllocatedRange, position: SupportsIndex
    ) -> tuple[AllocatedRange, AllocatedRange]:
        """Replace a range by two."""
        self.check(allocated)
        low, _ = check_range(position, 0, allocated.length)
        if low in (0, allocated.length):
            raise ValueError(
                f"split at {low} leaves one part empty: use 1 to {allocated.length - 1}"
            )
        start, rest = allocated.offset, allocated.length - low
        return self._hold(start, low), self._hold(start + low, rest)

    def claim(self, offset: SupportsIndex, length: SupportsIndex) -> AllocatedRange:
        """Make the object for a range that was allocated when the state was saved."""
        start, count = integer(offset, "offset"), integer(length, "length")
        if self._unclaimed.get(start) != count:
            raise ReceiptError(f"cannot claim [{start}, {start + count}): " + self._reason(start))
        del self._unclaimed[start]
        return self._hold(start, count)

    def _reason(self, offset: int) -> str:
        if offset in self._held:
            return "it is held already, as " + repr(self._held[offset])
        if offset in self._unclaimed:
            return f"the range allocated there has length {self._unclaimed[offset]}"
        return "no range that was allocated when the state was saved begins there"

    def is_valid(self, allocated: AllocatedRange) -> bool:
        """Tell whether the table holds this very object (table.2)."""
        return isinstance(allocated, AllocatedRange) and (
            self._held.get(allocated.offset) is allocated
        )

    def check(self, allocated: AllocatedRange) -> None:
        """Raise ReceiptError unless this table holds this very object (table.2)."""
        if not isinstance(allocated, AllocatedRange):
            raise TypeError(f"{allocated!r} is no AllocatedRange: get one from allocate()")
        if allocated._owner is not self._owner:  # noqa: SLF001  the two are one mechanism
            raise ReceiptError(f"{allocated!r} was allocated by another allocator")
        if not self.is_valid(allocated):
            raise ReceiptError(f"{allocated!r} was freed or split: allocate another one")

    def _hold(self, offset: int, length: int) -> AllocatedRange:
        allocated = AllocatedRange(self._owner, offset, length)
        self._held[offset] = allocated
        return allocated
