"""KeyboardInterrupt and SystemExit leave the loop from a callback as from any task."""

from __future__ import annotations

import pytest

from tests.support.fork_server import run_code

SCRIPT = """
import os, signal, sys
import anyio, aiommap

path, backend, loop, what, where = sys.argv[1:]

def end(*_):
    if what == "signal":
        signal.raise_signal(signal.SIGINT)
        return  # asyncio cancels the main task, where trio has raised already
    raise KeyboardInterrupt if what == "KeyboardInterrupt" else SystemExit(7)

async def end_later(*_):
    await anyio.sleep(0)
    end()

def fail(*_):
    raise ValueError

trials = []

async def validate(snapshot):
    trials.append(snapshot)
    if len(trials) > 1:
        end()

async def main():
    async with aiommap.open(path, "r+") as f:
        if where == "on_change":
            f.on_change(end)
        elif where == "async on_change":
            f.on_change(end_later)
        elif where == "on_error":
            f.on_change(fail, on_error=end)
        elif where == "progress":
            await f.prewarm(progress=end)
        async with aiommap.follow(path, validate=validate if where == "validate" else None):
            size = f.size
            while True:
                size += 1
                os.truncate(path, size)
                await anyio.sleep(0.1)

try:
    anyio.run(main, backend=backend, backend_options=eval(loop))
except BaseException as error:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # as from any task in a task group of the program
    print(type(error).__name__)
"""

LOOPS = {
    "asyncio": ("asyncio", "{'use_uvloop': False}"),
    "uvloop": ("asyncio", "{'use_uvloop': True}"),
    "trio": ("trio", "{}"),
}
WHERE = ["on_change", "async on_change", "on_error", "progress", "validate"]
WHAT = {
    "signal": "KeyboardInterrupt",
    "KeyboardInterrupt": "KeyboardInterrupt",
    "SystemExit": "SystemExit",
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("what", WHAT)
def test_exit_in_a_callback_leaves_the_loop(path, loop, where, what):
    ended = run_code(SCRIPT, path, *loop, what, where)
    assert ended.stdout.strip() == WHAT[what], ended.stderr
    assert "never retrieved" not in ended.stderr
