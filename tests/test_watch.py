"""What a mapped file tells of changes by others, and what it does not."""

from __future__ import annotations

import os

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import ChangeKind

pytestmark = pytest.mark.anyio


async def fetch(changes):
    with anyio.fail_after(10):
        return await anext(changes)


def rewrite(path):
    path.write_bytes(bytes(16 * PAGE))


def replace_by_rename(path):
    other = path.with_name("other")
    other.write_bytes(b"new")
    os.replace(other, path)


BASIC = {
    "modified": (lambda path: os.pwrite(os.open(path, os.O_WRONLY), b"x", 0), ChangeKind.MODIFIED),
    "metadata": (lambda path: path.chmod(0o600), ChangeKind.METADATA),
    "grown": (lambda path: os.truncate(path, 17 * PAGE), ChangeKind.GROWN),
    "truncated": (lambda path: os.truncate(path, PAGE), ChangeKind.TRUNCATED),
    "replaced": (replace_by_rename, ChangeKind.REPLACED),
    "removed": (os.unlink, ChangeKind.REMOVED),
}


@pytest.mark.parametrize(("act", "kind"), BASIC.values(), ids=BASIC)
async def test_a_change_is_reported_with_the_states_before_and_after(path, act, kind):
    before = os.stat(path)
    async with aiommap.open(path) as f, f.watch() as changes:
        act(path)
        change = await fetch(changes)
        assert (change.kind, change.path, change.merged) == (kind, str(path), 0)
        assert (change.old.size, change.old.inode) == (before.st_size, before.st_ino)
        after = os.stat(path) if path.exists() else None
        assert (change.new and change.new.mtime_ns) == (after and after.st_mtime_ns)
        assert f.orphaned == (kind in (ChangeKind.REPLACED, ChangeKind.REMOVED))
