"""Tables of what a request asks for: ranges, conditions, dates and paths. No file, no loop."""

from __future__ import annotations

import random
import time

import pytest

from tests.support.internals import (
    MAX_RANGES,
    Validators,
    canonical,
    decide,
    deciding_fields,
    parse_date,
    parse_ranges,
)

MALFORMED = [
    *" - 5 a-b 1-2-3 --1 +1-2 1_0-20 0x1-2 ²-5 ٣-5 5-4 -1- 0-1;5-6 bytes=5-6 0-9e1".split(" "),
    *("1 -2", "1- 2", "9" * 5000 + "-"),
]
#: 6 November 1994, 08:49:37: the date in the examples of RFC 9110.
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
MODIFIED = 784_111_777
BEFORE, AFTER = "Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"
KNOWN = Validators(b'"a"', MODIFIED)


def spans(ranges):
    return [(part.start, part.stop) for part in ranges]


def ranges_of(header, size):
    return parse_ranges(header.encode(), size)


def decided(method="GET", known=KNOWN, **fields):
    """Return status and ranges for a file of 100 bytes."""
    encoded = {name.replace("_", "-").encode(): text.encode() for name, text in fields.items()}
    status, ranges = decide(method, encoded, known, 100)
    return status, spans(ranges)


class TestParseRanges:
    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("bytes=0-0", [(0, 1)]),
            ("bytes=99-99", [(99, 100)]),
            ("bytes=10-", [(10, 100)]),
            ("bytes=-100", [(0, 100)]),
            ("bytes=-101", [(0, 100)]),
            ("bytes=90-200", [(90, 100)]),
            ("bytes=0-18446744073709551615", [(0, 100)]),
            ("bytes=0000000005-007", [(5, 8)]),
            ("BYTES=1-2", [(1, 3)]),
            ("bytes= 0-1 ,\t5-6 ", [(0, 2), (5, 7)]),
            ("bytes=,0-1,,5-6,", [(0, 2), (5, 7)]),
        ],
    )
    def test_ranges_are_half_open_and_within(self, header, expected):
        assert spans(ranges_of(header, 100)) == expected

    @pytest.mark.parametrize("spec", MALFORMED)
    def test_ranges_malformed_are_ignored(self, spec):
        assert ranges_of(f"bytes={spec}", 100) is None
        assert ranges_of(f"bytes=0-1,{spec or 'x'}", 100) is None

    @pytest.mark.parametrize("header", ["", "bytes", "0-1", "items=0-1", "bytes =0-1", ",="])
    def test_ranges_of_unknown_unit_are_ignored(self, header):
        assert ranges_of(header, 100) is None

    @pytest.mark.parametrize(
        "header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=-00,100-"]
    )
    def test_ranges_from_nowhere_are_refused(self, header):
        assert ranges_of(header, 100) == []

    @pytest.mark.parametrize("header", ["bytes=0-", "bytes=-5", "bytes=7-8"])
    def test_ranges_of_empty_file(self, header):
        assert ranges_of(header, 0) is None

    def test_ranges_unsatisfiable_are_left_out(self):
        assert spans(ranges_of("bytes=500-,3-4,-0", 100)) == [(3, 5)]

    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("bytes=50-59,0-9", [(50, 60), (0, 10)]),
            ("bytes=0-9,10-19", [(0, 20)]),
            ("bytes=0-9,11-19", [(0, 10), (11, 20)]),
            ("bytes=20-29,0-9,25-39", [(20, 40), (0, 10)]),
            ("bytes=60-,30-39,0-99", [(0, 100)]),
            ("bytes=90-,30-39,20-31", [(90, 100), (20, 40)]),
            ("bytes=0-,-1,0-0", [(0, 100)]),
        ],
    )
    def test_ranges_overlapping_are_merged(self, header, expected):
        assert spans(ranges_of(header, 100)) == expected

    def test_ranges_too_many_are_refused(self):
        specs = [f"{2 * i}-{2 * i}" for i in range(MAX_RANGES + 1)]
        assert len(ranges_of("bytes=" + ",".join(specs[:MAX_RANGES]), 1000)) == MAX_RANGES
        assert ranges_of("bytes=" + ",".join(specs), 1000) == []

    def test_ranges_cover_what_was_asked_once(self):
        draw = random.Random(2)
        for _ in range(500):
            pairs = [sorted(draw.choices(range(60), k=2)) for _ in range(draw.randint(1, 8))]
            header = "bytes=" + ",".join(f"{first}-{last}" for first, last in pairs)
            asked = {i for first, last in pairs for i in range(first, last + 1) if i < 50}
            given = [i for part in ranges_of(header, 50) for i in part]
            assert (len(given), set(given)) == (len(asked), asked), header


class TestDecide:
    def test_decide_without_conditions(self):
        assert decided() == (200, [(0, 100)])
        assert decided(range="bytes=1-2,9-9") == (206, [(1, 3), (9, 10)])
        assert decided(range="bytes=100-") == (416, [])
        assert decided(range="lines=1-2") == (200, [(0, 100)])
        assert decided("HEAD", range="bytes=1-2") == (200, [(0, 100)])

    @pytest.mark.parametrize("tags", ['"a"', 'W/"a"', "*", ' "b" ,\t"a"', '"b",W/"a"', '"x,","a"'])
    def test_if_none_match_compares_weakly(self, tags):
        assert decided(if_none_match=tags) == (304, [])
        assert decided("HEAD", if_none_match=tags) == (304, [])

    @pytest.mark.parametrize("tags", ['"b"', "a", '"aa"', '"b", W/"b"', "", '"a', "W/", '"b"*'])
    def test_if_none_match_of_others(self, tags):
        assert decided(if_none_match=tags) == (200, [(0, 100)])

    @pytest.mark.parametrize("tags", ['"a"', "*", '"b","a"', 'W/"a","a"'])
    def test_if_match_holds(self, tags):
        assert decided(if_match=tags, range="bytes=0-0") == (206, [(0, 1)])

    @pytest.mark.parametrize("tags", ['W/"a"', '"b"', "a", ""])
    def test_if_match_compares_strongly(self, tags):
        assert decided(if_match=tags) == (412, [])

    @pytest.mark.parametrize(
        ("date", "status"), [(BEFORE, 412), (DATE, 200), (AFTER, 200), ("soon", 200)]
    )
    def test_if_unmodified_since(self, date, status):
        assert decided(if_unmodified_since=date)[0] == status

    @pytest.mark.parametrize(
        ("date", "status"), [(BEFORE, 200), (DATE, 304), (AFTER, 304), ("soon", 200)]
    )
    def test_if_modified_since(self, date, status):
        assert decided(if_modified_since=date)[0] == status

    def test_entity_tags_count_before_dates(self):
        assert decided(if_match='"a"', if_unmodified_since=BEFORE)[0] == 200
        assert decided(if_match='"b"', if_unmodified_since=AFTER)[0] == 412
        assert decided(if_none_match='"b"', if_modified_since=AFTER)[0] == 200
        assert decided(if_none_match='"a"', if_modified_since=BEFORE)[0] == 304

    def test_if_match_counts_before_if_none_match(self):
        assert decided(if_match='"b"', if_none_match='"a"')[0] == 412
        assert decided(if_match='"a"', if_none_match='"a"')[0] == 304
        assert decided(if_unmodified_since=BEFORE, if_none_match='"a"')[0] == 412

    def test_not_modified_counts_before_ranges(self):
        assert decided(if_none_match='"a"', range="bytes=500-")[0] == 304

    @pytest.mark.parametrize("field", ['"b"', 'W/"a"', DATE, AFTER, "*", "", '"a","a"'])
    def test_if_range_of_others(self, field):
        assert decided(if_range=field, range="bytes=1-2") == (200, [(0, 100)])
        assert decided(if_range=field, range="bytes=500-") == (200, [(0, 100)])

    def test_if_range_of_this_version(self):
        assert decided(if_range='"a"', range="bytes=1-2") == (206, [(1, 3)])

    def test_decide_without_validators(self):
        unknown = Validators(None, None)
        assert decided(known=unknown, if_none_match='"a"')[0] == 200
        assert decided(known=unknown, if_none_match="*")[0] == 304
        assert decided(known=unknown, if_match='"a"')[0] == 412
        assert decided(known=unknown, if_modified_since=AFTER)[0] == 200
        assert decided(known=unknown, if_unmodified_since=BEFORE)[0] == 200
        assert decided(known=unknown, if_range='"a"', range="bytes=1-2")[0] == 200


def test_lines_of_one_name_join():
    lines = [(b"if-none-match", b'"b"'), (b"host", b"x"), (b"if-none-match", b'"a"')]
    assert deciding_fields(lines) == {b"if-none-match": b'"b", "a"'}
    twice = deciding_fields([(b"range", b"bytes=0-1"), (b"range", b"bytes=4-5")])
    assert decide("GET", twice, KNOWN, 100)[0] == 200


@pytest.mark.parametrize(
    "date", [DATE, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_date_of_each_form(date):
    assert parse_date(date.encode()) == MODIFIED


def test_date_without_zone_is_in_greenwich(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        found = parse_date(b"Sun Nov  6 08:49:37 1994")
    time.tzset()
    assert found == MODIFIED


@pytest.mark.parametrize(
    "date",
    [
        *("", "soon", "\xff", f"{DATE}, {DATE}", "9" * 5000, "1 2 3"),
        "Sun, 99 Nov 99999 08:49:37 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 -9999",
        f"{DATE.removesuffix('GMT')}+{'9' * 17}",
    ],
)
def test_date_that_is_none(date):
    assert parse_date(date.encode("latin-1")) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b", "/a/b"),
        ("a/b", "/a/b"),
        ("", "/"),
        ("/", "/"),
        ("//", "/"),
        ("/a//b", "/a/b"),
        ("/a/./b/", "/a/b/"),
        ("/a/b/.", "/a/b/"),
        ("/a/b/..", "/a/"),
        ("/a/..", "/"),
        ("/a/../b", "/b"),
        ("/...", "/..."),
        ("/a\\..\\b", "/a\\..\\b"),
        ("/..", None),
        ("/a/../..", None),
        ("/a/../../b", None),
        ("/a\0", None),
    ],
)
def test_canonical_path(path, expected):
    assert canonical(path) == expected
    assert expected is None or canonical(expected) == expected
