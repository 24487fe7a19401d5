"""For the site: adapt the pages of mkdocs for phones, and hide private modules.

Each cell of a table gets the name of its column: on a phone there is no room for columns, and
``stylesheets/site.css`` shows each row as a list. The reference names only public modules.
"""

from __future__ import annotations

import html
import re
from itertools import zip_longest

TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
ROW = re.compile(r"<tr>.*?</tr>", re.DOTALL)
HEADER = re.compile(r"<th[^>]*>(.*?)</th>", re.DOTALL)
CELL = re.compile(r"<td(?P<attributes>[^>]*)>")
#: Private modules in the titles of links of the reference: users do not import from there.
PRIVATE = re.compile(r"\s*\(aiommap(?:\.\w+)*?\._[\w.]+\)|(?<=title=\")aiommap(?:\.\w+)*?\._[\w.]+")
TAG = re.compile(r"<[^>]+>")


def on_page_content(content: str, **_: object) -> str:
    """Label the cells of all tables of a page; called by mkdocs."""
    return TABLE.sub(lambda found: labelled(found[0]), content)


def on_post_page(output: str, **_: object) -> str:
    """Drop private modules from a finished page; called by mkdocs."""
    return PRIVATE.sub("", output)


def labelled(table: str) -> str:
    """Give each cell the text of its column's header."""
    names = [TAG.sub("", header).strip() for header in HEADER.findall(table)]

    def label(row: re.Match[str]) -> str:
        pieces = CELL.split(row[0])
        # Between the pieces are the attributes of the cells.
        cells = zip_longest(pieces[1::2], pieces[2::2], names, fillvalue="")
        return pieces[0] + "".join(
            f"<td{attributes}{attribute(name)}>{rest}" for attributes, rest, name in cells if rest
        )

    return ROW.sub(label, table)


def attribute(name: str) -> str:
    """Return the attribute, or nothing for an empty header."""
    return f' data-label="{html.escape(html.unescape(name))}"' if name else ""
