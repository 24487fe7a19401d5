"""Helpers for tests of watching: fetching changes, and changing files as other programs do."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import anyio

from aiommap import ChangeKind


async def fetch(changes):
    with anyio.fail_after(100):
        return await anext(changes)


async def fetch_event(changes, path):
    """Make a file longer until an event reports it; on a busy machine a poll may come first."""
    with anyio.fail_after(100):
        while True:
            os.truncate(path, os.path.getsize(path) + 1)
            change = await anext(changes)
            if change.source == "event":
                return change


async def expect(changes, *kinds):
    """Fetch changes, and check that they are of these kinds."""
    found = [await fetch(changes) for _ in kinds]
    assert [change.kind for change in found] == list(kinds)
    return found[-1]


async def fence(path, changes):
    """Check that no change is left to fetch: the next one is the change made here."""
    size = os.stat(path).st_size + 1
    os.truncate(path, size)
    change = await expect(changes, ChangeKind.GROWN)
    assert (change.new.size, change.merged) == (size, 0)


async def until(condition):
    with anyio.fail_after(100):
        while not condition():
            await anyio.sleep(0.005)


def write(path, offset=0, data=b"by another"):
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, offset)
    os.close(fd)


def store_from_another_process(path):
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), 0) as m: m[0] = 1 + m[0] % 200"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def replace_by_rename(path):
    other = path.with_name("other")
    other.write_bytes(b"new")
    os.replace(other, path)


async def reach(changes, state):
    """Fetch changes until one ends in a state, and return the kinds on the way."""
    kinds = []
    while True:
        change = await fetch(changes)
        kinds.append(change.kind)
        if state(change.new):
            return kinds


def missing(new):
    return new is None


def size(count):
    return lambda new: new is not None and new.size == count


class Deaf:
    """A notifier that reports nothing: every event is lost, as after an overflow."""

    def __init__(self, *_):
        pass

    def watch(self, debounce_ms, step_ms, timeout_ms, stop_event):
        while not stop_event.is_set():  # which sleeps
            time.sleep(step_ms / 1000)
        return "stop"

    def close(self):
        pass


def watch(hub, path, **options):
    return hub._watcher.subscribe(str(path), **options)
