"""The detector of calls that may wait on the loop works; every test relies on it."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

import aiommap
from tests.support.loop_watch import LoopWatch

pytestmark = pytest.mark.anyio

#: Stands for a module of the package.
OURS = {"__name__": "aiommap._pretended", "os": os, "open": open}
HERE = Path(__file__)


def pretended(source):
    return eval(compile(source, "aiommap/_pretended.py", "eval"), dict(OURS))


@pytest.mark.parametrize(
    "source",
    ["lambda path: os.stat(path)", "lambda path: open(path)", "lambda path: os.open(path, 0)"],
    ids=["stat", "open", "os_open"],
)
async def test_own_system_call_on_loop_is_found(source):
    with LoopWatch() as watch:
        made = pretended(source)(HERE)
    if hasattr(made, "close"):
        made.close()
    assert len(watch.found) == 1
    assert "_pretended.py" in watch.found[0]


async def test_worker_verb_on_loop_is_found(path):
    async with aiommap.open(path) as f:
        ours = pretended("lambda mapping: mapping.populate(0, 1, False)")
        with LoopWatch() as watch:
            ours(f._mapping)
    assert "populate" in watch.found[0]


async def test_workers_and_tests_may_wait(path):
    with LoopWatch() as watch:
        os.stat(HERE)
        await anyio.to_thread.run_sync(pretended("lambda path: os.stat(path)"), HERE)
    assert watch.found == []
