"""Each logger and its records; and silence unless the application configures logging."""

from __future__ import annotations

import logging

import anyio
import pytest

import aiommap
from tests.support.fork_server import run_code

pytestmark = pytest.mark.anyio


def said(caplog):
    return [(record.name, record.levelname, record.getMessage()) for record in caplog.records]


async def test_failed_flush_is_logged_once(path, caplog):
    f = await aiommap.open(path, "r+")
    await f.write(0, b"x")
    path.unlink()
    for _ in range(3):
        with pytest.raises(aiommap.FlushError) as caught:
            await f.flush()
    with pytest.raises(aiommap.FlushError):
        await f.aclose()
    [(name, level, message)] = said(caplog)
    assert (name, level) == ("aiommap.flushes", "ERROR")
    assert str(path) in message
    assert "was removed" in message
    assert caught.value.reason in message


async def test_failure_nobody_waits_for_is_logged(path, caplog):
    policy = aiommap.FlushPolicy.every_writes(1)
    f = await aiommap.open(path, "r+", flush=policy)
    failed = anyio.Event()
    f.on_error(lambda _: failed.set())
    path.unlink()
    await f.write(0, b"x")
    await failed.wait()
    assert [(name, level) for name, level, _ in said(caplog)] == [("aiommap.flushes", "ERROR")]
    with pytest.raises(aiommap.FlushError):
        await f.aclose()


async def test_callback_that_raises_is_logged(path, caplog):
    def fail(error):
        raise ZeroDivisionError

    f = await aiommap.open(path, "r+")
    f.on_error(fail)
    told = anyio.Event()
    f.on_error(lambda _: told.set())
    await f.write(0, b"x")
    path.unlink()
    with pytest.raises(aiommap.FlushError):
        await f.aclose()
    await told.wait()
    [record] = [record for record in caplog.records if record.name == "aiommap.callbacks"]
    assert record.levelname == "ERROR"
    assert record.exc_info[0] is ZeroDivisionError


async def test_open_and_close_are_logged_at_debug(path, caplog):
    caplog.set_level(logging.DEBUG, "aiommap")
    async with aiommap.open(path):
        pass
    assert said(caplog) == [
        ("aiommap.files", "DEBUG", f'opened {path} in mode "r": {path.stat().st_size} bytes'),
        ("aiommap.files", "DEBUG", f"closed {path}"),
    ]


@pytest.mark.slow
def test_unconfigured_logging_prints_nothing(path):
    code = """
import anyio, os, sys, aiommap

async def main():
    f = await aiommap.open(sys.argv[1], "r+")
    f.on_error(lambda _: 1 / 0)
    await f.write(0, b"x")
    os.unlink(sys.argv[1])
    try:
        await f.aclose()
    except aiommap.FlushError:
        await anyio.sleep(0)

anyio.run(main)
"""
    done = run_code(code, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
