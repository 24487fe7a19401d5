"""Opening a log: the fifteen steps of recovery, and how a reader finds out what is in a log.

For worker threads. docs/log_format.md numbers the steps. After a crash in any step, the next
opening can make all of them again (L9): recovery changes nothing before it has checked everything,
and it reports nothing before its changes are durable.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .._errors import CorruptLogError, UnsupportedError
from .._native import LogCursor, LogRecord, LogWriter, search_frames
from .calls import write_all
from .control import Control, believed_control, open_control
from .files import (
    Segment,
    Unnamed,
    find_segment,
    lock_last_segment,
    lock_segment,
    open_segment,
    remove_standbys,
    segment_bases,
)
from .format import (
    CLEAN,
    DURABLE_SEQUENCE,
    FIRST,
    FRAME_BYTES,
    HEADER_BYTES,
    MAX_LIFE,
    OPEN,
    OPEN_DATA,
    TAIL,
    Holder,
    SegmentHeader,
    frame_bytes,
    segment_name,
    word,
)
from .log_folder import Folder
from .recovery import (
    FoundSegment,
    Recovered,
    Search,
    Walk,
    check_first,
    check_joins,
    refuse_damage,
    torn_bytes,
    where_to_begin,
)

_PIECE_BYTES = 1 << 20
#: Greater than every sequence.
NO_LIMIT = (1 << 64) - 1


@dataclass(slots=True)
class OpenedLog:
    """What opening hands to the writer of a log."""

    folder: Folder
    control: Control
    native: LogWriter
    segment: Segment
    #: Sizes of all segments by their bases, oldest first.
    sizes: dict[int, int]
    #: Bases of segments that were discarded, but not unlinked yet.
    discarded: list[int]
    log_id: bytes
    first: int
    recovered: Recovered | None


@dataclass(frozen=True, slots=True)
class Survey:
    """How far the good frames of a log go; finding that out changes nothing.

    Attributes:
        segments: those that are not discarded, oldest first.
        begin: index of the segment in which the walk began.
        walks: one walk for that segment and for each after it, up to where the frames end.
        first: the lowest sequence that is not discarded.
    """

    segments: Sequence[FoundSegment]
    begin: int
    walks: Sequence[Walk]
    first: int

    @property
    def end(self) -> int:
        """Index of the segment in which the frames end."""
        return self.begin + len(self.walks) - 1

    @property
    def walk(self) -> Walk:
        """The walk along the segment in which the frames end."""
        return self.walks[-1]


def walk_segment(folder: Folder, found: FoundSegment, life: int, proof: int) -> Walk:
    """Follow the frames of a segment to its END frame, or to the first bad one (steps 7, 8)."""
    segment = open_segment(folder, found.header.base)
    try:
        cursor = LogCursor(LogRecord)
        header = found.header
        cursor.proof = proof
        cursor.enter(
            segment.fd, header.salt, header.position, HEADER_BYTES, header.base, life, False
        )
        _, discarded, end_at, proven = cursor.seek(NO_LIMIT, found.size)
        return Walk(
            end_at if end_at >= 0 else cursor.offset,
            cursor.sequence,
            cursor.life,
            cursor.proof,
            discarded,
            end_at >= 0,
            cursor.last_crc,
            cursor.offset,
            proven,
        )
    finally:
        segment.close()


def is_of(folder: Folder, log_id: bytes) -> bool:
    """Tell whether the last segment of a folder belongs to a log; true without any segment."""
    bases = segment_bases(folder)
    return not bases or find_segment(folder, bases[-1]).header.log_id == log_id


def survey(folder: Folder, proof: int, first: int) -> Survey | None:
    """Make steps 3 to 8; return None if there is no segment.

    Args:
        folder: the folder of the log.
        proof: the highest sequence that is durable, as the control file says; 0 if it says nothing.
        first: the lowest sequence that is kept, as the control file says; 0 if it says nothing.
    """
    bases = segment_bases(folder)
    if not bases:
        return None
    last = find_segment(folder, bases[-1])
    first = max(first, last.header.first)
    segments = [find_segment(folder, base) for base in bases[:-1] if base >= first] + [last]
    check_joins(folder.path, segments)
    begin = where_to_begin(segments, proof)
    at, life, walks = begin, 1, list[Walk]()
    while True:
        life = max(life, segments[at].header.life)
        walk = walk_segment(folder, segments[at], life, proof)
        walks.append(walk)
        first, proof, life = max(first, walk.discarded), max(proof, walk.proof), walk.life
        if not walk.ended or at + 1 == len(segments):
            break
        after = segments[at + 1].header
        if (after.base, after.previous_crc) != (walk.sequence, walk.last_crc):
            raise CorruptLogError(
                folder.path, f"{segments[at + 1].path} does not continue {segments[at].path}"
            )
        at += 1
    check_first(folder.path, segments, first, walk.sequence - 1)
    kept = [found for found in segments if found.header.base >= first] or segments[-1:]
    dropped = len(segments) - len(kept)
    if begin >= dropped:
        segments, begin = kept, begin - dropped
    return Survey(segments, begin, walks, first)


def search_behind(folder: Folder, found: Survey) -> Search:
    """Search for good frames between the end of the walk and the end of the log (step 9)."""
    walk = found.walk
    proof, records, life, last_end = 0, 0, walk.life, -1
    for number, segment in enumerate(found.segments[found.end :]):
        header = segment.header
        offset = walk.offset if number == 0 else HEADER_BYTES
        fd = folder.open_file(segment_name(header.base), os.O_RDONLY)
        try:
            seen = search_frames(
                fd,
                header.salt,
                header.position + offset - HEADER_BYTES,
                offset,
                segment.size,
                walk.sequence,
                header.base,
            )
        finally:
            os.close(fd)
        proof, records, life = max(proof, seen[0]), records + seen[1], max(life, seen[2])
        if number == 0:
            last_end = seen[3]
        else:
            proof = max(proof, header.durable_below - 1)
            last_end = max(last_end, walk.offset) + max(seen[3] - HEADER_BYTES, 0)
            life = max(life, header.life)
    return Search(proof, records, life, last_end)


def open_writer(folder: Folder, segment_size: int) -> OpenedLog:
    """Recover a log, or make one, and lock it against other writers."""
    last = control = None
    try:
        kind = folder.remote_kind()
        if kind is not None:
            raise UnsupportedError(
                f"write {folder.path}",
                f"it is on {kind}, where a lock and a mapped page do not hold for other machines: "
                "put the log on a local disk",
            )
        last = lock_last_segment(folder)  # step 1
        control = Control(folder)
        return _Recovery(folder, control, last, segment_size).run()
    except BaseException:
        if control is not None:
            control.close()
        if last is not None:
            last.close()
        raise


class _Recovery:
    """One opening by a writer, from step 2 on."""

    def __init__(
        self,
        folder: Folder,
        control: Control,
        last: Segment | None,
        segment_size: int,
    ) -> None:
        self._begun = time.perf_counter()
        self._folder = folder
        self._control = control
        self._last = last
        self._segment_size = segment_size
        known = control.identity is not None
        block = control.block
        self._durable = word(block, DURABLE_SEQUENCE) if known else 0
        self._first = word(block, FIRST) if known else 0
        self._clean = word(block, CLEAN) if known else 0
        self._tail = word(block, TAIL) if control.is_of_this_boot else 0
        self._life = Holder.unpack(block).life if known else 0

    def run(self) -> OpenedLog:
        try:
            native = self._control.map()
        except OSError as error:
            raise UnsupportedError(
                f"write {self._folder.path}", f"its control file cannot be mapped: {error.strerror}"
            ) from error
        self._forget_foreign_words()
        found = survey(self._folder, self._durable, self._first)
        opened = self._create(native) if found is None else self._recover(native, found)
        try:
            self._publish(opened)
        except BaseException:
            opened.segment.close()
            raise
        return opened

    def _forget_foreign_words(self) -> None:
        """Ignore the words of a control file that belongs to another log."""
        identity = self._control.identity
        if identity is not None and not is_of(self._folder, identity.log_id):
            self._durable = self._first = self._clean = self._tail = 0

    def _create(self, native: LogWriter) -> OpenedLog:
        if self._durable:
            raise CorruptLogError(
                self._folder.path, f"it has no segment, and {self._durable} records were durable"
            )
        header = SegmentHeader(
            secrets.token_bytes(16), 1, 0, secrets.randbits(64), 1, 1, self._life + 1, 0, 0
        )
        # No other writer makes a standby now: without a segment, the control file's lock decides.
        remove_standbys(self._folder)
        unnamed = Unnamed(self._folder, self._segment_size)
        try:
            segment = unnamed.name(header)
        except BaseException:
            unnamed.close()
            raise
        self._folder.sync()
        native.life = header.life
        native.enter(segment.fd, header.salt, 0, 1, 1, HEADER_BYTES, self._segment_size)
        return OpenedLog(
            self._folder,
            self._control,
            native,
            segment,
            {1: self._segment_size},
            [],
            header.log_id,
            1,
            None,
        )

    def _recover(self, native: LogWriter, found: Survey) -> OpenedLog:
        current, walk = found.segments[found.end], found.walk
        search = search_behind(self._folder, found)
        refuse_damage(current.path, walk, max(self._durable, search.proof))
        position = current.header.position + walk.offset - HEADER_BYTES
        if position < self._tail:
            refuse_damage(current.path, walk, walk.sequence)
        life = max(walk.life, search.life, self._life, current.header.life) + 1
        if life > MAX_LIFE:
            raise UnsupportedError(
                f"write {self._folder.path}", "it was opened 2**32 times: copy it"
            )
        cut = torn_bytes(walk, search)
        proof = max(self._durable, walk.proof, current.header.durable_below - 1)
        segment = self._open_locked(current.header.base)
        try:
            # No other writer makes a standby now: this one has the segment's lock, too.
            remove_standbys(self._folder)
            self._set_aside(found)
            rewritten = self._rewrite(found, proof)  # step 12
            native.life = life
            native.durable = walk.sequence - 1
            native.enter(
                segment.fd,
                current.header.salt,
                current.header.position,
                current.header.base,
                walk.sequence,
                walk.offset,
                current.size,
            )
            native.durable = min(proof, walk.sequence - 1)
            self._write_open(native, cut, search.records)
            native.sync()  # step 14
            self._folder.sync()
        except BaseException:
            segment.close()
            raise
        if self._last is not None and self._last is not segment:
            self._last.close()  # _set_aside renamed it
        seconds = time.perf_counter() - self._begun
        clean = self._clean == position and not cut
        recovered = Recovered(life, walk.sequence - 1, cut, search.records, rewritten, seconds)
        first, bases = max(found.first, self._first, 1), segment_bases(self._folder)
        found_sizes = {each.header.base: each.size for each in found.segments[: found.end + 1]}
        return OpenedLog(
            self._folder,
            self._control,
            native,
            segment,
            {base: size for base, size in found_sizes.items() if base >= first},
            [base for base in bases if base < first],
            current.header.log_id,
            first,
            None if clean else recovered,
        )

    def _open_locked(self, base: int) -> Segment:
        """Open and lock the segment in which the writer goes on.

        In most cases that is the last segment, which is open and locked already.
        """
        if self._last is not None and self._last.header.base == base:
            return self._last
        return lock_segment(self._folder, base)

    def _set_aside(self, found: Survey) -> None:
        """Rename the segments behind the end of the frames, newest first.

        Nothing proves that their records were durable, and the records come behind one that was
        torn. Only the policy ``never()`` leaves such segments.
        """
        for segment in reversed(found.segments[found.end + 1 :]):
            name = segment_name(segment.header.base)
            self._folder.rename(name, f"{name}.cut-{secrets.token_hex(4)}")
        if found.end + 1 < len(found.segments):
            self._folder.sync()

    def _rewrite(self, found: Survey, proof: int) -> int:
        """Write again all frames that nothing proves durable, and return how many bytes.

        A failed flush may have left them in the page cache only, where the kernel takes them for
        clean. This includes frames that are no records: if a power cut lost one of them, recovery
        could not reach the records behind it.
        """
        written = 0
        for number, walk in enumerate(found.walks, found.begin):
            stop = walk.stop
            if number == found.end:
                stop = walk.offset  # OPEN takes the place of an END frame
            elif proof >= found.segments[number + 1].header.base:
                continue
            base = found.segments[number].header.base
            fd = self._folder.open_file(segment_name(base), os.O_RDWR)
            try:
                for at in range(walk.proven, stop, _PIECE_BYTES):
                    piece = os.pread(fd, min(_PIECE_BYTES, stop - at), at)
                    write_all(fd, piece, at)
                    written += len(piece)
                if number < found.end:
                    os.fdatasync(fd)
            finally:
                os.close(fd)
        return written

    def _write_open(self, native: LogWriter, cut: int, records: int) -> None:
        """Write the OPEN frame over torn bytes: a life is durable before records have it (L5)."""
        room = frame_bytes(OPEN_DATA.size) + FRAME_BYTES
        if native.at + room > native.limit and native.base < native.sequence:
            # The writer rolls before its first record, and the new header has the life.
            native.limit = native.at
            return
        native.mark(OPEN, OPEN_DATA.pack(cut, records))

    def _publish(self, opened: OpenedLog) -> None:
        """Make step 15: publish the words, then the identity that makes readers believe them."""
        native = opened.native
        self._control.say_who_writes(native.life)
        native.set_word(CLEAN, 0)
        native.set_word(FIRST, opened.first)
        native.publish()
        self._control.adopt(opened.log_id)
        native.publish()


@dataclass(frozen=True, slots=True)
class Look:
    """What a reader finds when it opens a log.

    Attributes:
        log_id: id of the log; None while it has no segment.
        trusted: whether the words of the control file can be believed. If so, they say how far
            the log goes, and ``last`` and ``durable`` are 0 here.
        first: the lowest sequence that is kept.
        last: the last record that was found or that is known to be durable; ``first - 1`` if there
            is none.
        durable: records up to this sequence were durable: if one of them is missing, that is
            damage.
    """

    log_id: bytes | None
    trusted: bool
    first: int
    last: int
    durable: int


def look(folder: Folder) -> Look:
    """Find out what is in a log: from its control file, or else by steps 2 to 9. Write nothing."""
    fd, believed = open_control(folder), None
    if fd is not None:
        try:
            believed = believed_control(fd, folder)
        finally:
            os.close(fd)
    if believed is not None and believed[2]:
        block, identity, _ = believed
        return Look(identity.log_id, True, word(block, FIRST), 0, 0)
    durable, first = 0, 0
    if believed is not None and is_of(folder, believed[1].log_id):
        durable, first = word(believed[0], DURABLE_SEQUENCE), word(believed[0], FIRST)
    found = survey(folder, durable, first)
    if found is None:
        return Look(None, False, 1, 0, 0)
    walk, current = found.walk, found.segments[found.end].header
    searched = search_behind(folder, found)
    proof = max(durable, walk.proof, current.durable_below - 1, searched.proof)
    last = max(walk.sequence - 1, proof)
    return Look(current.log_id, False, max(found.first, 1), last, proof)
