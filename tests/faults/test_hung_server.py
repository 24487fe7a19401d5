"""Verbs that wait for a server that never answers end when they are cancelled."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.powercut.mount import missing, mounted

LACKING = missing()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))

SCRIPT = """
import sys
import anyio, aiommap

path, backend, verb = sys.argv[1:]

async def main():
    async with aiommap.open(path) as f:
        print("begun", flush=True)
        if verb == "prewarm":
            await f.prewarm()
        elif verb == "read":
            await f.read(0, 4)
        elif verb == "tasks":
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(f.prewarm)
        else:
            async with f.locked():
                pass

if backend == "uvloop":
    anyio.run(main, backend_options={"use_uvloop": True})
else:
    anyio.run(main, backend=backend)
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("verb", ["prewarm", "locked", "read", "tasks"])
def test_interrupt_ends_a_wait_for_a_server(tmp_path, backend, verb):
    with mounted(tmp_path, "tests.support.odd_fs") as mount:
        command = [sys.executable, "-c", SCRIPT, str(mount.path / "hung"), backend, verb]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout.readline() == "begun\n"
                for _ in range(3):
                    try:
                        process.wait(0.3)
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGINT)
                process.wait(100)
                assert "KeyboardInterrupt" in process.stderr.read()
            finally:
                process.kill()
