"""Requests: their conditions, their byte ranges, and the answer to which these lead.

Pure: it takes only header fields, and the validators and size of a file (RFC 9110 §13 and §14). The
standard library parses dates; docs/decisions.md says what libraries do with the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

#: A request for more ranges is refused.
MAX_RANGES = 100

#: The header fields that decide which answer a GET or HEAD gets.
DECIDING = frozenset(
    {
        b"range",
        b"if-range",
        b"if-match",
        b"if-none-match",
        b"if-modified-since",
        b"if-unmodified-since",
    }
)

#: Twenty digits hold every 64-bit number, and keep int() cheap.
_RANGE_SPEC = re.compile(rb"([0-9]{0,20})-([0-9]{0,20})")
#: Roughly the three forms of a date (§5.6.7). Without this check the parser would accept two dates
#: that were joined, and take the first.
_DATE = re.compile(rb"[A-Za-z]{3,9},? [0-9A-Za-z :-]{17,25}")
_ENTITY_TAG = re.compile(rb'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


@dataclass(frozen=True, slots=True)
class Validators:
    """Tell one version of a file from another.

    Attributes:
        etag: a strong entity tag, quoted; None if there is none.
        modified: the time of modification, in whole seconds since 1970; None if it is not known.
    """

    etag: bytes | None
    modified: int | None


def deciding_fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Collect the fields in ``DECIDING``; lines of one name are joined (§5.3)."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in DECIDING:
            found[name] = b"%b, %b" % (found[name], value) if name in found else value
    return found


def decide(
    method: str, fields: Mapping[bytes, bytes], known: Validators, size: int
) -> tuple[int, list[range]]:
    """Decide the status of the answer to a GET or HEAD, and the bytes to send.

    Returns:
        200 with the whole range, 206 with the ranges to send, or 304, 412 or 416 with none.
    Source: RFC 9110 §13.2.2, the order in which conditions are checked.
    """
    if fields:
        refused = _precondition(fields, known)
        if refused is not None:
            return refused, []
        # Ranges are defined for GET alone (§14.2).
        if method == "GET" and b"range" in fields and _is_current(fields.get(b"if-range"), known):
            asked = parse_ranges(fields[b"range"], size)
            if asked is not None:
                return (206 if asked else 416), asked
    return 200, [range(size)]


def _precondition(fields: Mapping[bytes, bytes], known: Validators) -> int | None:
    """Return the status that a condition leads to; None if all hold."""
    if b"if-match" in fields:
        if not _is_listed(fields[b"if-match"], known.etag, weakly=False):
            return 412
    elif known.modified is not None:
        limit = parse_date(fields.get(b"if-unmodified-since"))
        if limit is not None and known.modified > limit:
            return 412
    if b"if-none-match" in fields:
        return 304 if _is_listed(fields[b"if-none-match"], known.etag, weakly=True) else None
    if known.modified is not None:
        since = parse_date(fields.get(b"if-modified-since"))
        if since is not None and known.modified <= since:
            return 304
    return None


def _is_listed(field: bytes, etag: bytes | None, *, weakly: bool) -> bool:
    """Tell whether a list of entity tags has this one, or is ``*`` (§8.8.3.2)."""
    if field.strip(b" \t") == b"*":
        return True
    tags = _ENTITY_TAG.findall(field)
    return any(tag == etag and (weakly or not weak) for weak, tag in tags)


def _is_current(if_range: bytes | None, known: Validators) -> bool:
    """Tell whether the If-Range of a request names this version (§13.1.5).

    A date never does. A file may have changed twice in the second that a date names, and a client
    could then join parts of two versions. A client that got this version got its entity tag, and
    has to send that.
    """
    return if_range is None or (known.etag is not None and if_range.strip(b" \t") == known.etag)


def parse_date(field: bytes | None) -> int | None:
    """Return the seconds since 1970 of an HTTP date; None for text that is not one: ignore it."""
    if field is None or not _DATE.fullmatch(field):
        return None
    try:
        found = parsedate_to_datetime(field.decode())
    except (ValueError, OverflowError):
        return None
    # A date without a zone is in GMT, not in the zone of this machine.
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def parse_ranges(field: bytes, size: int) -> list[range] | None:
    """Return the byte ranges of a Range header, merged so that none overlaps or touches another.

    Returns:
        None if the header has to be ignored: it is malformed, or of another unit, or the file is
        empty, so that no Content-Range could name a part. An empty list if it has to be refused: no
        range begins within the file, or there are more than ``MAX_RANGES``.
    Source: RFC 9110 §14.1.2, §14.2.
    """
    unit, _, listed = field.partition(b"=")
    specs = [spec for spec in (part.strip(b" \t") for part in listed.split(b",")) if spec]
    if unit.lower() != b"bytes" or not specs or not size:
        return None
    found = []
    for spec in specs:
        match = _RANGE_SPEC.fullmatch(spec)
        if match is None or spec == b"-":
            return None
        first, last = (int(text) if text else None for text in match.groups())
        if first is None:
            found.append(range(max(size - (last or 0), 0), size))
        elif last is None or last >= first:
            found.append(range(first, size if last is None else min(last + 1, size)))
        else:
            return None
    return coalesce([asked for asked in found if asked]) if len(found) <= MAX_RANGES else []


def coalesce(ranges: list[range]) -> list[range]:
    """Merge ranges that overlap or touch; keep the order of the request (§15.3.7.2)."""
    if len(ranges) < 2:
        return ranges
    merged: list[range] = []
    for asked in sorted(ranges, key=lambda r: r.start):
        if merged and asked.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, asked.stop))
        else:
            merged.append(asked)
    return sorted(merged, key=lambda m: next(i for i, r in enumerate(ranges) if r.start in m))


def canonical(path: str) -> str | None:
    """Resolve ``.``, ``..`` and empty names of a decoded URL path (RFC 3986 §5.2.4).

    Returns:
        A path that begins with a slash, and ends with one if it names a folder; None if it leads
        out of the root or has a null character.
    """
    if "\0" in path:
        return None
    names: list[str] = []
    last = ""
    for last in path.split("/"):
        if last == "..":
            if not names:
                return None
            names.pop()
        elif last not in ("", "."):
            names.append(last)
    below = "/".join(names)
    return f"/{below}/" if names and last in ("", ".", "..") else f"/{below}"
