"""Helpers for tests of following: ways to replace a file, and waiting for the result."""

from __future__ import annotations

import json
import os

import anyio
import anyio.to_thread

import aiommap


def replace(path, content):
    other = path.with_name("incoming")
    other.write_bytes(content)
    other.replace(path)


async def replace_off_loop(path, content):
    """Replace a file in code that the package calls on the loop, which must not wait."""
    await anyio.to_thread.run_sync(replace, path, content)


async def content(snapshot):
    return await snapshot.read_exact(0, snapshot.size)


async def check_good(snapshot):
    """Refuse a file that is not good, as a user's validation does."""
    found = await content(snapshot)
    if not found.startswith(b"good"):
        raise ValueError(f"not good: {found!r}")


async def until(condition):
    """Wait for a condition that another task or thread makes true, and fail if none does."""
    with anyio.fail_after(100):
        while not await condition():
            await anyio.sleep(0.001)


async def until_serves(live, expected):
    async def serves():
        return await content(live.current) == expected

    await until(serves)


async def until_serves_stably(live, expected):
    """Do the same as ``until_serves`` where a snapshot may lose bytes while it is read."""

    async def serves():
        try:
            return await content(live.current) == expected
        except aiommap.MappingFaultError:
            return False

    await until(serves)


def mappings(path):
    with open("/proc/self/maps") as lines:
        return sum(str(path) in line for line in lines)


async def until_mapped(path, count):
    async def mapped():
        return mappings(path) == count

    await until(mapped)


async def load_json(snapshot):
    return json.loads(await content(snapshot))


async def until_value(live, expected):
    async def has():
        return live.ready and live.value == expected

    await until(has)


class Errors:
    """The errors that ``on_error`` got."""

    def __init__(self):
        self.found = []
        self._told = anyio.Event()

    def __call__(self, error):
        self.found.append(error)
        self._told.set()
        self._told = anyio.Event()

    async def wait(self, kind, match=""):
        """Wait for an error of a kind, and forget the errors before it."""
        with anyio.fail_after(100):
            while True:
                while self.found:
                    error = self.found.pop(0)
                    if isinstance(error, kind) and match in str(error):
                        return error
                await self._told.wait()


class FolderErrors:
    """The errors that ``on_error`` got, with the names of files."""

    def __init__(self):
        self.found = []

    def __call__(self, path, error):
        self.found.append((os.path.basename(path), error))

    async def wait(self, name, kind, match=""):
        def take():
            for told in self.found:
                if told[0] == name and isinstance(told[1], kind) and match in str(told[1]):
                    self.found.remove(told)
                    return True
            return False

        async def told():
            return take()

        await until(told)


class Gate:
    """A validation that tells when it has begun, and waits until it may go on."""

    def __init__(self):
        self.begun, self.opened = anyio.Event(), anyio.Event()
        self.calls, self.cancelled = 0, 0

    async def __call__(self, snapshot):
        self.calls += 1
        if self.calls == 1:
            return  # the first file
        self.begun.set()
        try:
            await self.opened.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        await check_good(snapshot)


def link_swap(path, content):
    """Turn a symbolic link, as ``ln -sfn`` does."""
    target = path.with_name(f"target-{content.decode()}")
    target.write_bytes(content)
    link = path.with_name("link")
    link.symlink_to(target)
    link.replace(path)


def unlink_and_create(path, content):
    path.unlink()
    path.write_bytes(content)


def hard_link(path, content):
    other = path.with_name("other")
    other.write_bytes(content)
    path.unlink()
    os.link(other, path)
    other.unlink()


def move_away(path, content):
    path.rename(path.with_name("backup"))
    path.write_bytes(content)


REPLACEMENTS = [replace, link_swap, unlink_and_create, hard_link, move_away]
