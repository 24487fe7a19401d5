"""The native parts of a log by themselves: checksums, frames, the cursor, the search."""

from __future__ import annotations

import os
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiommap
from tests.support.internals import (
    CONTROL_BYTES,
    CRC32C_TABLE,
    CRC32C_WAYS,
    HEADER_BYTES,
    LogCursor,
    LogReceipt,
    LogRecord,
    LogWriter,
    SegmentHeader,
    crc32c,
    find_record,
    frame_bytes,
    search_frames,
    time_slice_renew,
)
from tests.support.logs import bytes_read
from tests.support.waiting import spend_time_slice

SALT, POSITION = 0x1234567890ABCDEF, 1 << 33
LIMIT, COLD, END, WRONG = range(4)


@pytest.fixture
def files(tmp_path):
    with open(tmp_path / "control", "w+b") as control, open(tmp_path / "segment", "w+b") as segment:
        control.truncate(CONTROL_BYTES)
        segment.truncate(1 << 20)
        yield control.fileno(), segment.fileno()


@pytest.fixture
def writer(files):
    made = LogWriter(files[0])
    made.life = 1
    made.bind_loop_thread(LogReceipt)
    made.enter(files[1], SALT, POSITION, 1, 1, HEADER_BYTES, 1 << 20)
    return made


@pytest.fixture
def cursor(files):
    made = LogCursor(LogRecord)
    made.enter(files[1], SALT, POSITION, HEADER_BYTES, 1, 1, False)
    return made


def take_all(cursor, end=1 << 20, *, waits=True):
    """Take records one by one, until there are none."""
    found = []
    while (record := cursor.take(end, waits, 0)) is not None:
        found.append(record)
    return found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
    ids=["empty", "digits", "zeros", "ones", "ascending"],
)
def test_crc32c_of_known_texts(data, expected):
    """Castagnoli's CRC, with the texts of RFC 3720."""
    assert crc32c(data) == crc32c(data, 0, CRC32C_TABLE) == expected


@given(st.binary(max_size=5000), st.integers(0, 5000))
def test_crc32c_of_parts(data, cut):
    whole = crc32c(data)
    for way in CRC32C_WAYS:
        assert crc32c(data, 0, way) in (whole, None)
        assert crc32c(data[cut:], crc32c(data[:cut]), way) in (whole, None)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 1007, 1008, 1009, 2016, 4096, 70_000])
def test_crc32c_at_the_borders_of_lanes(length):
    data = os.urandom(length + 3)
    for start in range(3):
        part = data[start : start + length]
        found = {crc32c(part), *(crc32c(part, 0, way) for way in CRC32C_WAYS)}
        assert found - {None} == {crc32c(part, 0, CRC32C_TABLE)}


def test_cursor_reads_what_the_writer_stored(writer, cursor, files):
    items = [os.urandom(n) for n in (0, 1, 7, 8, 9, 100, 70_000, 300_000)]
    assert writer.store(items, 0) == len(items)
    writer.mark(3, b"")
    found = [(record.sequence, record.life, record.data) for record in take_all(cursor)]
    assert found == [(i, 1, item) for i, item in enumerate(items, 1)]
    assert cursor.take(1 << 20, True, 0) is None
    assert cursor.state == END
    assert cursor.offset == writer.at
    assert cursor.position == writer.position == POSITION + writer.at - HEADER_BYTES


def test_store_leaves_room_for_the_end(writer):
    whole = (1 << 20) - HEADER_BYTES - 24
    assert writer.store([b"first"], 0) == 1
    rest = whole - (writer.at - HEADER_BYTES)
    assert writer.store([bytes(rest - 24 + 1)], 0) == 0
    assert writer.store([bytes(rest - 24), b""], 0) == 1
    assert writer.append(None, b"") is None


def test_first_record_fits_whatever_the_limit(writer, files):
    writer.enter(files[1], SALT, POSITION, 1, 1, HEADER_BYTES, HEADER_BYTES)
    assert writer.append(None, b"x" * 100).sequence == 1
    assert writer.append(None, b"x") is None


def append_granted(writer, owner, data):
    """Append a record that is granted; a busy machine may use a slice up before."""
    while (receipt := writer.append_granted(owner, data)) is None:
        time_slice_renew(0)
    return receipt


def test_granted_appends(writer):
    """They are bytes, and end at or before the offset of the grant."""
    time_slice_renew(0)
    assert writer.append_granted(None, b"x") is None
    writer.granted_until = HEADER_BYTES + 3 * 32
    for sequence in (1, 2):
        receipt = append_granted(writer, "owner", b"x" * 8)
        assert (receipt.sequence, receipt.count, receipt._owner) == (sequence, 1, "owner")
    time_slice_renew(0)
    assert writer.append_granted(None, bytearray(1)) is None
    assert writer.append_granted(None, b"x" * 9) is None
    assert (writer.sequence, writer.inline_appends) == (3, 2)
    assert writer.waited_ns == 0


def test_grant_ends_with_the_time_slice(writer):
    """Another thread than the one of the loop has none either."""
    writer.granted_until = 1 << 20

    def append(*, bind):
        if bind:
            writer.bind_loop_thread(LogReceipt)
        return writer.append_granted(None, b"x")

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert one.submit(append, bind=True).result() is None  # a new thread was granted no slice
        other.submit(time_slice_renew, 0).result()
        assert other.submit(append, bind=False).result() is None
        one.submit(time_slice_renew, 0).result()
        while one.submit(append, bind=False).result() is None:
            one.submit(time_slice_renew, 0).result()
    assert writer.inline_appends == 1


def test_failed_store_takes_the_grant_back(writer, files, tmp_path):
    with open(tmp_path / "segment", "rb") as read_only:
        writer.enter(read_only.fileno(), SALT, POSITION, 1, 1, HEADER_BYTES, 1 << 20)
        writer.granted_until = 1 << 20
        with pytest.raises(OSError, match="Bad file descriptor"):
            append_granted(writer, None, b"x")
    assert (writer.granted_until, writer.sequence, writer.inline_appends) == (0, 1, 0)


def test_receipts_are_made_of_a_type_of_receipts(writer):
    for wrong in (int, LogRecord, None):
        with pytest.raises(TypeError, match="is no LogReceipt"):
            writer.bind_loop_thread(wrong)
    for verb in (writer.append, writer.append_granted):
        with pytest.raises(TypeError, match="takes a log and data"):
            verb(b"x")


def walk_granted(writer, files, records, prepare):
    """Take a record, which grants all others but the last, and then those; return their data."""

    class Walk(LogCursor):
        async def _advance(self):
            raise StopAsyncIteration

    async def take_rest():
        prepare()
        async for record in walk:
            found.append(record.data)
            prepare()

    walk = Walk(LogRecord)
    walk.enter(files[1], SALT, POSITION, HEADER_BYTES, 1, 1, False)
    found = [walk.take(writer.at, True, len(records) - 2).data]
    with pytest.raises(StopIteration):
        take_rest().send(None)
    return found


def test_granted_records_are_read_on(writer, files):
    """A cursor fills its buffer again for them, and asks Python where nothing more is granted."""
    records = [os.urandom(4000) for _ in range(200)]  # three buffers
    assert writer.store(records, 0) == 200
    walks = (walk_granted(writer, files, records, lambda: time_slice_renew(0)) for _ in range(50))
    assert records[:199] in walks  # a busy machine may spend the slice of one


def test_no_granted_record_is_read_when_the_time_slice_is_spent(writer, files):
    records = [os.urandom(4000) for _ in range(200)]
    assert writer.store(records, 0) == 200
    found = walk_granted(writer, files, records, spend_time_slice)
    assert 1 < len(found) < 100  # those of one buffer
    assert found == records[: len(found)]


@pytest.mark.parametrize(
    ("sequence", "durable", "claim"),
    [
        (5, 4, 1),
        (5, 0, 5),
        (0xFFFFFE, 0, 0xFFFFFE),
        (0xFFFFFF, 0, 0xFFFFFF),
        (1 << 40, 0, 0xFFFFFF),
        (1 << 40, (1 << 40) - 0xFFFFFE, 0xFFFFFE),
    ],
)
def test_claim_is_never_too_much(writer, files, sequence, durable, claim):
    writer.sequence, writer.durable = sequence, durable
    writer.append(None, b"")
    (found,) = struct.unpack("<I", os.pread(files[1], 4, HEADER_BYTES + 20))
    assert found & 0xFFFFFF == claim
    cursor = LogCursor(LogRecord)
    cursor.enter(files[1], SALT, POSITION, HEADER_BYTES, sequence, 1, False)
    cursor.take(1 << 20, True, 0)
    assert cursor.proof == (0 if claim == 0xFFFFFF else durable)


@pytest.mark.parametrize("change", ["salt", "position", "sequence", "life"])
def test_frame_of_another_place_does_not_fit(writer, files, change):
    writer.append(None, b"x")
    place = {"salt": SALT, "position": POSITION, "sequence": 1, "life": 1}
    place[change] += 8
    cursor = LogCursor(LogRecord)
    cursor.enter(
        files[1],
        place["salt"],
        place["position"],
        HEADER_BYTES,
        place["sequence"],
        place["life"],
        False,
    )
    assert cursor.take(1 << 20, True, 0) is None
    assert cursor.state == WRONG


def test_skipped_kinds_are_passed(writer, cursor):
    writer.append(None, b"1")
    writer.mark(0x80, b"of a later minor version")
    writer.append(None, b"2")
    assert [record.data for record in take_all(cursor)] == [b"1", b"2"]


def test_large_skipped_frame_is_no_record(writer, cursor, files):
    """The frame is longer than what a cursor reads at a time."""
    writer.append(None, b"1")
    data = os.urandom(300_000)
    at, position = writer.at, writer.position
    header = struct.pack("<IQII", len(data), 2, 1, 0x80FFFFFF)
    crc = crc32c(struct.pack("<QQ", SALT, position) + header + data)
    os.pwrite(files[1], struct.pack("<I", crc) + header + data, at)
    writer.enter(files[1], SALT, POSITION, 1, 2, at + frame_bytes(len(data)), 1 << 20)
    writer.append(None, b"2")
    found = []
    while cursor.offset < writer.at:
        found += [(record.sequence, record.data) for record in take_all(cursor, writer.at)]
        assert cursor.state == LIMIT
    assert found == [(1, b"1"), (2, b"2")]


@pytest.mark.parametrize("kind", [0, 6, 0x7F])
def test_unknown_kinds_are_wrong(writer, cursor, kind):
    writer.append(None, b"1")
    writer.mark(kind, b"")
    assert len(take_all(cursor)) == 1
    assert cursor.state == WRONG


def test_every_bit_of_a_segment_counts(writer, files):
    """After any bit has changed, a cursor reads the records before that frame, and no other."""
    items = [b"one", b"", b"eight888", bytes(40)]
    ends = [HEADER_BYTES]
    for each in items:
        writer.append(None, each)
        ends.append(writer.at)
    writer.mark(3, b"")
    whole = os.pread(files[1], writer.at, 0)
    for bit in range(8 * HEADER_BYTES, 8 * len(whole)):
        at = bit // 8
        flipped = bytes([whole[at] ^ 1 << bit % 8])
        os.pwrite(files[1], flipped, at)
        cursor = LogCursor(LogRecord)
        cursor.enter(files[1], SALT, POSITION, HEADER_BYTES, 1, 1, False)
        found = take_all(cursor, writer.at)
        good = sum(at >= end for end in ends[1:])
        assert [record.data for record in found] == items[:good], bit
        assert cursor.state == WRONG, bit
        os.pwrite(files[1], whole[at : at + 1], at)


def test_every_bit_of_a_header_counts():
    header = SegmentHeader(bytes(range(16)), 1, 2, 3, 4, 5, 6, 7, 8)
    block = header.pack(crc32c)
    assert SegmentHeader.unpack(block, "segment", crc32c) == header
    for bit in range(8 * 92):
        flipped = bytearray(block)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((ValueError, aiommap.UnsupportedError)):
            SegmentHeader.unpack(bytes(flipped), "segment", crc32c)


@given(
    st.lists(st.sampled_from(["append", "sync", "open", "lost"]), min_size=1, max_size=20),
    st.integers(0, 20),
)
def test_walk_says_where_the_proven_records_end(steps, known):
    """The end is exact if the first frame behind each flush is there, and never too far."""
    with (
        tempfile.NamedTemporaryFile(dir="/dev/shm") as control,
        tempfile.NamedTemporaryFile(dir="/dev/shm") as segment,
    ):
        control.truncate(CONTROL_BYTES)
        segment.truncate(1 << 20)
        writer = LogWriter(control.fileno())
        writer.life = 1
        writer.enter(segment.fileno(), SALT, POSITION, 1, 1, HEADER_BYTES, 1 << 20)
        ends, claimed, exact = [HEADER_BYTES], 0, True
        for step in steps:
            if step == "sync":
                writer.sync()
                continue
            if step == "lost" and writer.durable:  # a frame that nothing before it claimed
                writer.durable -= 1
            if writer.durable > claimed:
                claimed, exact = writer.durable, writer.durable == writer.sequence - 1
            if step == "open":
                writer.mark(2, bytes(16))
            else:
                writer.store([bytes(len(ends))], 0)
                ends.append(writer.at)
        known = min(known, len(ends) - 1)
        cursor = LogCursor(LogRecord)
        cursor.enter(segment.fileno(), SALT, POSITION, HEADER_BYTES, 1, 1, False)
        cursor.proof = known
        *_, proven = cursor.seek(1 << 62, writer.at)
        assert cursor.proof == max(known, claimed)
        if exact or known >= claimed:
            assert proven == ends[cursor.proof]
        else:
            assert proven in ends[: cursor.proof + 1]


def test_search_finds_frames_behind_a_torn_one(writer, files):
    for i in range(10):
        writer.append(None, bytes(i))
    at = HEADER_BYTES + frame_bytes(0)
    os.pwrite(files[1], b"\xff", at + 4)
    found = search_frames(files[1], SALT, POSITION + at - HEADER_BYTES, at, 1 << 20, 2, 1)
    assert found[:4] == (0, 8, 1, writer.at)
    third = at + frame_bytes(1)
    found = find_record(files[1], SALT, POSITION + at - HEADER_BYTES, at, 1 << 20, 2, 1)
    assert found == (3, third, 1)
    assert find_record(files[1], SALT, POSITION + at - HEADER_BYTES, at, 1 << 20, 99, 1) is None


@pytest.mark.parametrize("before", [b"\0", b"\xff", None], ids=["zeros", "ones", "hole"])
def test_search_finds_a_frame_wherever_it_lies(writer, files, before):
    """Also across the edges of what a search reads at a time, and of holes."""
    begin, end = HEADER_BYTES, (1 << 20) + HEADER_BYTES + (64 << 10)
    os.ftruncate(files[1], end)
    edges = (begin, begin + 4096, begin + 8192, begin + (1 << 20))
    for at in (edge + 8 * step for edge in edges for step in range(-4, 5)):
        if at < begin:
            continue
        os.ftruncate(files[1], begin)
        os.ftruncate(files[1], end)
        if before is not None:
            os.pwrite(files[1], before * (at - begin), begin)
        writer.enter(files[1], SALT, POSITION, 1, 7, at, end)
        writer.append(None, b"data")
        found = search_frames(files[1], SALT, POSITION, begin, end, 7, 7)
        assert found[:4] == (0, 1, 1, at + frame_bytes(4)), at


@pytest.mark.parametrize("torn", [False, True], ids=["nothing before it", "a torn frame"])
def test_search_reads_no_hole(writer, files, torn):
    """Neither for a search nor for the sums of what looks like a long frame."""
    end, at = 64 << 20, 60 << 20
    os.ftruncate(files[1], end)
    if torn:
        os.pwrite(files[1], header_like(50 << 20), HEADER_BYTES)
    writer.enter(files[1], SALT, POSITION, 1, 7, at, end)
    writer.append(None, b"data")
    before = bytes_read()
    found = search_frames(files[1], SALT, POSITION, HEADER_BYTES, end, 1, 1)
    assert found[:4] == (0, 1, 1, at + frame_bytes(4))
    assert bytes_read() - before < 8 << 20


def test_search_of_random_bytes_ends(files):
    """Random bytes look like headers now and then, and the search sums few bytes for each."""
    os.pwrite(files[1], os.urandom((1 << 20) - HEADER_BYTES), HEADER_BYTES)
    found = search_frames(files[1], SALT, POSITION, HEADER_BYTES, 1 << 20, 1, 1)
    assert found[:4] == (0, 0, 0, -1)


@given(
    st.lists(st.integers(0, 3000) | st.integers(0, 150_000), min_size=1, max_size=8),
    st.integers(0, 100),
    st.integers(0, 1 << 62),
)
def test_search_checks_long_frames_as_short_ones(lengths, words_before, draw):
    """The search finds all frames, and all but one after a bit of that one has changed."""
    end = 2 << 20
    begin = HEADER_BYTES + 8 * words_before
    with (
        tempfile.NamedTemporaryFile(dir="/dev/shm") as control,
        tempfile.NamedTemporaryFile(dir="/dev/shm") as segment,
    ):
        control.truncate(CONTROL_BYTES)
        segment.truncate(end)
        fd = segment.fileno()
        writer = LogWriter(control.fileno())
        writer.life = 1
        writer.enter(fd, SALT, POSITION, 1, 1, begin, end)
        ends = [begin]
        for length in lengths:
            writer.store([os.urandom(length)], 0)
            ends.append(writer.at)
        at = draw % (writer.at - begin) + begin
        for flipped in (0, 1 << draw % 8):
            (byte,) = os.pread(fd, 1, at)
            os.pwrite(fd, bytes([byte ^ flipped]), at)
            found = search_frames(fd, SALT, POSITION, HEADER_BYTES, end, 1, 1)
            assert found[1] == len(lengths) - (flipped > 0)
            bad = sum(at >= each for each in ends[1:])
            if not flipped or bad + 1 < len(lengths):
                assert found[3] == writer.at


def header_like(length):
    return struct.pack("<IIQII", 0x1234567, length, 1, 1, 0x01000001)


@pytest.mark.parametrize("shape", ["to the end", "small", "long", "any"])
def test_search_sums_what_looks_like_headers_a_few_times_only(files, shape):
    """Whatever lengths they claim: else one record could keep a log from being opened again."""
    end = 1 << 20
    count = (end - HEADER_BYTES) // 24
    lengths = {
        "to the end": lambda i: 24 * (count - i - 1),
        "small": lambda _: 1000,
        "long": lambda i: 300_000 + 8 * (i % 1000),
        "any": lambda i: i * 2_654_435_761 % (24 * (count - i)),
    }[shape]
    os.pwrite(files[1], b"".join(header_like(lengths(i)) for i in range(count)), HEADER_BYTES)
    before = bytes_read()
    *found, summed = search_frames(files[1], SALT, POSITION, HEADER_BYTES, end, 1, 1)
    assert found == [0, 0, 0, -1]
    assert summed < 50 * end  # a thousand bytes for each
    assert bytes_read() - before < 50 * end


def test_words_are_published_in_the_control_file(writer, files):
    def words():
        block = os.pread(files[0], CONTROL_BYTES, 0)
        return [int.from_bytes(block[at : at + 8], "little") for at in range(256, 640, 64)]

    writer.append(None, b"x")
    tail = POSITION + frame_bytes(1)
    assert words() == [tail, 0, 0, 1, 0, 1]
    writer.sync()
    writer.publish()
    assert words() == [tail, tail, 1, 1, 0, 2]
    os.pwrite(files[0], b"\xff\xff\xff\xff", 576)
    writer.publish()
    assert words()[-1] == 0  # the futex word wraps, and the words beside it stay
