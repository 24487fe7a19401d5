"""Ways to break things on purpose: a soak that cannot fail proves nothing."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from collections.abc import Callable

import aiommap

#: The first ten are made by the scenes whose oracles have to find them, the last four here.
SABOTAGE = (
    *("lost-write", "lost-record", "late-write", "mixed-table", "mixed-folder", "lost-change"),
    *("wrong-read", "made-up"),
    *("miscount", "torn-record", "descriptor", "mapping", "thread", "object"),
)


def take_hostages(names: frozenset[str], folder: str, hub: aiommap.Hub) -> dict[str, object]:
    """Make the objects that a round then leaves behind on purpose."""
    ways: dict[str, Callable[[], object]] = {
        "descriptor": socket.socket,
        "mapping": lambda: _mapping(folder),
        "thread": _thread,
        "object": lambda: hub,
    }
    return {name: make() for name, make in ways.items() if name in names}


def _mapping(folder: str) -> mmap.mmap:
    with open(os.path.join(folder, "hostage"), "wb+") as file:
        file.truncate(mmap.PAGESIZE)
        return mmap.mmap(file.fileno(), mmap.PAGESIZE)


def _thread() -> threading.Thread:
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    return thread
