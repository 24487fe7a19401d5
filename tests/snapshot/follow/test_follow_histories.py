"""Random histories of a followed path: whatever has happened, the last good file is served."""

from __future__ import annotations

import os
import random

import anyio
import pytest

import aiommap
from tests.support.following import (
    REPLACEMENTS,
    check_good,
    replace,
    until_serves,
    until_serves_stably,
)

pytestmark = pytest.mark.anyio


def append(path, content):
    with path.open("ab") as file:
        file.write(content)


def overwrite(path, content):
    path.write_bytes(content)


def cut(path, _):
    os.truncate(path, 3)


def change_mode(path, _):
    path.chmod(0o640)


def remove(path, _):
    path.unlink()


#: Changes that never change the bytes of a file in place.
FROM_OUTSIDE = [*REPLACEMENTS, remove, change_mode]
IN_PLACE = [append, overwrite, cut]


def act(draw, path, actions, number):
    text = b"%s %d" % (draw.choice([b"good", b"bad"]), number)
    try:
        draw.choice(actions)(path, text)
    except FileNotFoundError:  # an earlier action removed it
        replace(path, text)


def end_with_good(path):
    """Make sure that the last file is a good one, and return its content."""
    last = path.exists() and path.read_bytes()
    if not last or not last.startswith(b"good"):
        replace(path, last := b"good at last")
    return last


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
async def test_history_serves_only_good_files(path, seed):
    draw = random.Random(seed)
    async with aiommap.follow(path, validate=check_good, on_error=lambda _: None) as live:
        for number in range(1, 100):
            act(draw, path, FROM_OUTSIDE, number)
            await anyio.sleep(draw.choice([0, 0, 0.001, 0.02]))
            await check_good(live.current)
        await until_serves(live, end_with_good(path))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
async def test_history_in_place_serves_the_last(path, seed):
    draw = random.Random(seed)
    async with aiommap.follow(path, validate=check_good, on_error=lambda _: None) as live:
        for number in range(1, 100):
            act(draw, path, [*FROM_OUTSIDE, *IN_PLACE], number)
            await anyio.sleep(draw.choice([0, 0, 0.001, 0.02]))
        await until_serves_stably(live, end_with_good(path))
