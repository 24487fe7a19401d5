"""A verb names an argument of a wrong type, before it touches anything.

The test asks all public names for their parameters, so that none can be forgotten: a parameter that
is in no table here fails. Numbers that are only out of range are tested in test_edges.py.
"""

from __future__ import annotations

import inspect
import re
import reprlib
from contextlib import asynccontextmanager

import pytest

import aiommap
import aiommap.numpy  # for arrays
from aiommap import PAGE_SIZE as PAGE
from aiommap import Advice, FlushPolicy, testing

pytestmark = pytest.mark.anyio


class Thing:
    def __repr__(self):
        return "<a thing>"


THINGS = (Thing(), [], [1], {"a": 1}, (1,))
NO_INTEGER = (None, "text", b"bytes", 1.5, *THINGS)
NO_NUMBER = ("text", b"bytes", *THINGS)
NO_FLAG = (None, "yes", 1, 1.5, *THINGS)
NO_FUNCTION = ("text", 1, *THINGS)
NO_PATH = (None, 1, 1.5, *THINGS)
NO_TEXT = (None, 1, *THINGS)
NO_BUFFER = (None, "text", 1, 1.5, *THINGS)
NO_PAIRS = (None, 1, Thing(), [1], [(1,)], [(1, 2, 3)], [Thing()])

#: Wrong values by the name of the parameter; for some verbs a name means another thing (OTHERWISE).
WRONG = {
    **dict.fromkeys(
        ("offset", "length", "size", "new_size", "position", "start", "end"), NO_INTEGER
    ),
    **dict.fromkeys(("count", "n", "index", "alignment", "expected", "new", "value"), NO_INTEGER),
    **dict.fromkeys(("timeout", "poll_interval", "seconds"), NO_NUMBER),
    **dict.fromkeys(
        ("write", "growable", "shared", "discard", "prewarm", "lock", "required"), NO_FLAG
    ),
    **dict.fromkeys(("sparse", "huge_pages", "inline_writes"), NO_FLAG),
    **dict.fromkeys(("callback", "on_error", "progress", "validate", "load"), NO_FUNCTION),
    **dict.fromkeys(("path", "target"), NO_PATH),
    **dict.fromkeys(("layout", "order"), NO_TEXT),
    "mode": (None, 1, "rw", *THINGS),
    **dict.fromkeys(("data", "buffer", "state", "content"), NO_BUFFER),
    **dict.fromkeys(("ranges", "items"), NO_PAIRS),
    "parts": (None, 1, [1], {"a": 1}, {"a": (1,)}, {"a": "text"}),
    "advice": ("text", 1, *THINGS),
    "dtype": (Thing(), [1]),
    "shape": ("text", 1.5, Thing(), ["text"]),
    "needle": (None, "text", 1.5, *THINGS),  # a number is a byte
    "allocated": (None, "text", *THINGS),
    "flush": (None, "always", *THINGS),
    "hub": ("text", 1, *THINGS),
    "workers": ("text", 1.5, *THINGS),
    "capacity": ("text", 1.5, *THINGS),
    "number": (None, "EIO", *THINGS),
    "only": ("text", *THINGS),
    "file": (None, "text", *THINGS),
}
#: Wrong values of parameters that mean another thing for some verbs.
OTHERWISE = {
    # A number of changes, not memory.
    (verb, "buffer"): ("text", b"bytes", 1.5, *THINGS)
    for verb in ("watch", "on_change")
} | {
    # None is allowed, as in bytes.find.
    **{(verb, "start"): NO_INTEGER[1:] for verb in ("find", "rfind")},
    # A number is a descriptor.
    **{(verb, "path"): (None, 1.5, True, *THINGS) for verb in ("open", "open_memory")},
    # Only the modes that make a file take a size: test_messages.py.
    ("aiommap.open", "size"): (),
    ("Hub.open", "size"): (),
}
#: Parameters of which None is the default.
OPTIONAL = {"length", "end", "start", "alignment", "size", "state"}
#: The arguments that are passed beside the parameter that is tried.
RIGHT = {
    "offset": 0,
    "length": 16,
    "size": PAGE,
    "new_size": 16 * PAGE,
    "position": 4,
    "data": b"data",
    "buffer": bytearray(4),
    "ranges": [(0, 1)],
    "items": [(0, b"x")],
    "parts": {"a": (0, 1)},
    "advice": Advice.NORMAL,
    "callback": print,
    "count": 1,
    "index": 0,
    "value": 1,
    "expected": 1,
    "new": 1,
    "dtype": "<u1",
    "needle": b"x",
    "layout": "B",
    "content": b"new",
}
#: Optional arguments that the call needs as well, or other arguments would not be valid.
BESIDE = {"allocator": {"start": 8 * PAGE}, "flush_range": {"length": 16}, "open": {"mode": "r+"}}
#: Methods that are not tried here.
UNTRIED = {
    "RangeAllocator": {"is_valid"},  # it takes any object
    "Snapshot": {"open"},  # in OPENINGS
    "MappedBackend": {"open"},
}


def parameters(call):
    signature = inspect.signature(call)
    return [
        p for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]


def arguments(call, name, value, right):
    positional, named = [], {}
    for p in parameters(call):
        beside = BESIDE.get(getattr(call, "__name__", ""), {})
        left_out = p.default is not p.empty and p.kind is not p.POSITIONAL_ONLY
        if p.name != name and left_out and (p.name not in beside or name == "state"):
            continue
        given = value if p.name == name else {**right, **beside}.get(p.name, p.default)
        if p.kind is p.POSITIONAL_ONLY:
            positional.append(given)
        else:
            named[p.name] = given
    return positional, named


async def finish(made):
    if hasattr(made, "__await__"):
        made = await made
    if hasattr(made, "__aenter__"):
        async with made:
            pass
    elif hasattr(made, "__enter__"):
        with made:
            pass
    elif hasattr(made, "__anext__"):
        await anext(made)


async def refuse(where, call, right=RIGHT):
    for p in parameters(call):
        verb = where.rpartition(".")[2]
        keys = ((where, p.name), (verb, p.name))
        wrong = next((OTHERWISE[key] for key in keys if key in OTHERWISE), WRONG.get(p.name))
        assert wrong is not None, f"{where} has a parameter {p.name!r} that is in no table"
        for value in wrong:
            if value is None and p.default is None and p.name in OPTIONAL:
                continue
            positional, named = arguments(call, p.name, value, right)
            at = f"{where}({p.name}={value!r})"
            with pytest.raises(REFUSED) as refused:  # noqa: PT012  how it is called, then how it ends
                await finish(call(*positional, **named))
                pytest.fail(f"{at} was accepted")
            assert names(str(refused.value), value), f"{at}: {refused.value}"


REFUSED = (TypeError, ValueError, aiommap.UnsupportedError)
#: Python's own words for such errors; a message of the library must not have them.
RAW = re.compile(
    r"cannot be interpreted|not supported between|unpack|unsupported operand|not iterable"
    r"|has no attribute|unhashable|bytes-like|argument \d|object is not|expected str"
)


def names(message, value):
    """Tell whether a message shows the value, or its wrong part, and is not in Python's words."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    shown = [reprlib.repr(part) for part in (value, *parts)]
    return any(text in message for text in shown) and not RAW.search(message)


async def refuse_verbs(target):
    kind = type(target).__name__
    for name, member in inspect.getmembers(type(target)):
        left_out = UNTRIED.get(kind, set()) | {"aclose", "close", "release"}
        if name.startswith("_") or name in left_out or not inspect.isroutine(member):
            continue
        await refuse(f"{kind}.{name}", getattr(target, name))


@asynccontextmanager
async def targets(path):
    async with aiommap.open(path, "r+") as f, aiommap.Snapshot.open(path) as snapshot:
        allocator = f.allocator(0, end=8 * PAGE)
        RIGHT["allocated"] = allocator.allocate(16)
        yield {
            "file": f,
            "view": f.view(0, 8 * PAGE),
            "allocator": allocator,
            "word": f.atomic_u32(8 * PAGE),
            "words": f.atomic_u64_array(9 * PAGE, 4),
            "lock": aiommap.AsyncLock(f, 10 * PAGE),
            "snapshot": snapshot,
            "backend": aiommap.MappedBackend(snapshot),
        }


@pytest.mark.parametrize(
    "which", ["file", "view", "allocator", "word", "words", "lock", "snapshot", "backend"]
)
async def test_verbs_name_wrong_arguments(path, which):
    before = path.read_bytes()
    async with targets(path) as found:
        await refuse_verbs(found[which])
    assert path.read_bytes()[: 8 * PAGE] == before[: 8 * PAGE]


OPENINGS = {
    "aiommap.open": aiommap.open,
    "Snapshot.open": aiommap.Snapshot.open,
    "FileBackend.open": aiommap.FileBackend.open,
    "MappedBackend.open": aiommap.MappedBackend.open,
    "follow": aiommap.follow,
    "Hub": aiommap.Hub,
    "align_up": aiommap.align_up,
    "align_down": aiommap.align_down,
}


@pytest.mark.parametrize("name", OPENINGS)
async def test_openings_name_wrong_arguments(path, name):
    await refuse(name, OPENINGS[name], RIGHT | {"path": path, "mode": "r"})
    assert path.stat().st_size == 16 * PAGE


async def test_hubs_name_wrong_arguments(path):
    async with aiommap.Hub() as hub:
        await refuse("Hub.open", hub.open, RIGHT | {"path": path})
        await refuse("Hub.watch", hub.watch, RIGHT | {"path": path})


@pytest.mark.parametrize("name", ["every_bytes", "every_writes", "every_interval"])
async def test_policies_name_wrong_arguments(name):
    await refuse(name, getattr(FlushPolicy, name))


@pytest.mark.parametrize(
    "name", ["failing_flush", "slow_disk", "full_disk", "truncated_file", "replaced_file"]
)
async def test_faults_name_wrong_arguments(path, name):
    async with aiommap.open(path, "r+") as f:
        await refuse(name, getattr(testing, name), RIGHT | {"file": f, "target": f, "number": 5})
