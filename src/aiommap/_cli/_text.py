"""Numbers and names as text: sizes, durations, rates and file names; and wrapping of lines.

Pure. Only file names can have characters beyond ASCII, so that piped output works in any locale.
"""

from __future__ import annotations

import re
import unicodedata

KIB, MIB = 1 << 10, 1 << 20

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
# A word for breaking lines: a number and its unit are one word.
_WORD = re.compile(r"\s*(?:[-+]?\d[\d.,]* (?:%|[um]?s|[KMGTPE]i?B(?:/s)?|B)(?!\w)\S*|\S+)")
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def format_bytes(count: int) -> str:
    """Write a number of bytes with a binary unit: ``512 B``, ``4.0 KiB``, ``256.0 MiB``."""
    amount, unit = float(count), 0
    # 1023.95 would be rounded up to "1024.0": it belongs to the next unit.
    while amount >= (1024 if unit == 0 else 1023.95) and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def format_difference(count: int) -> str:
    """Write by how much a size changed: ``+4.0 KiB``, ``-8 B``, ``0 B``."""
    return f"{'+' if count > 0 else '-' if count < 0 else ''}{format_bytes(abs(count))}"


def parse_bytes(text: str) -> int:
    """Read a number of bytes: ``4096``, ``4K``, ``256M``, ``1GiB``; units are powers of 1024.

    Raises:
        ValueError: if the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not text.isascii():
        raise ValueError(f"{text!r} is not a size: give bytes, or a number with K, M, G or T")
    return int(match[1]) << _SHIFTS[match[2].upper()]


def format_seconds(seconds: float) -> str:
    """Write a duration with three significant digits: ``1.20 us``, ``34.0 ms``, ``1.50 s``."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        amount = seconds * factor
        if amount >= 0.9995 or unit == "us":
            return f"{_three_digits(amount)} {unit}"
    raise AssertionError("unreachable: the last unit takes everything")


def _three_digits(amount: float) -> str:
    if amount >= 99.95:
        return f"{amount:.0f}"
    return f"{amount:.1f}" if amount >= 9.995 else f"{amount:.2f}"


def format_rate(count: int, seconds: float) -> str:
    """Write bytes per second in MiB/s; a duration of zero has no rate."""
    return f"{count / MIB / seconds:,.0f} MiB/s" if seconds > 0 else "- MiB/s"


def format_share(part: float, whole: float) -> str:
    """Write a share in per cent; 100.0 means exactly all, and 0.0 exactly nothing."""
    if part >= whole:
        return "100.0 %"
    return "0.0 %" if part <= 0 else f"{min(max(100 * part / whole, 0.1), 99.9):.1f} %"


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: ``1 file``, ``2 files``, ``3 flushes``."""
    ending = "" if count == 1 else "es" if noun.endswith("sh") else "s"
    return f"{count:,} {noun}{ending}"


def printable(name: str) -> str:
    """Write a file name on one line, with control characters and undecodable bytes escaped."""
    decoded = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in decoded
    )


def columns_of(text: str) -> int:
    """Count the columns that a terminal gives a text: two for each wide character."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def shorten(name: str, columns: int) -> str:
    """Return a name that fits; if it is too long, cut off its beginning: its end tells more."""
    if columns_of(name) <= columns:
        return name
    while name and columns_of(name) > columns - 3:
        name = name[1:]
    return f"...{name}"


def fold(text: str, columns: int, indent: int) -> list[str]:
    """Break a line between words into parts that fit, all but the first behind an indent.

    Blanks within a part stay, so that aligned columns stay aligned. A word that is too long is a
    part by itself. The parts come without the indent. Joined, they are the text, except for blanks
    at the breaks.
    """
    parts: list[str] = []
    part, room = "", columns
    for word in _WORD.findall(text):
        if part.strip() and columns_of(part + word) > room:
            parts.append(part)
            part, room = word.lstrip(), max(columns - indent, 1)
        else:
            part += word
    return [*parts, part]


def wrap(text: str, columns: int) -> str:
    """Wrap prose; every line gets the indent of the first."""
    indent = text[: len(text) - len(text.lstrip(" "))]
    return f"\n{indent}".join(fold(text, columns, len(indent)))
