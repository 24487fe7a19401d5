"""The pages for users of another library name every call of that library."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import aiofiles.threadpool.binary
import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"


def public(*classes):
    return sorted({name for cls in classes for name in vars(cls) if not name.startswith("_")})


def words_of(page):
    return set(re.findall(r"\w+", (DOCS / page).read_text(encoding="utf-8")))


#: Also names that only later Pythons have.
MMAP = sorted({*public(mmap.mmap), "set_name", "MS_ASYNC"})
FILES = [
    name
    for cls in (
        aiofiles.threadpool.binary.AsyncFileIO,
        aiofiles.threadpool.binary.AsyncBufferedReader,
        aiofiles.threadpool.binary.AsyncBufferedIOBase,
    )
    for name in dir(cls)
    if not name.startswith("_")
]


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("from_mmap.md", MMAP),
        ("from_aiofiles.md", sorted(set(FILES) - {"raw"})),
        ("from_numpy_memmap.md", [*public(np.memmap), "filename", "offset", "mode"]),
    ],
    ids=["mmap", "aiofiles", "numpy.memmap"],
)
def test_every_call_of_the_other_is_named(page, names):
    assert names
    assert [name for name in names if name not in words_of(page)] == []
