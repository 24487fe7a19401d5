"""Another process that changes files, as other programs do."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Self

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "outside.py")


class Outsider:
    """A process that runs our commands, one at a time."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._commands = process.stdin
        self._answers = BufferedByteReceiveStream(process.stdout)
        self._turn = anyio.Lock()

    @classmethod
    async def start(cls) -> Self:
        """Start the process. The loop waits while the system does that."""
        return cls(await anyio.open_process([sys.executable, SCRIPT], stderr=None))

    async def do(self, verb: str, *arguments: object) -> Any:
        """Call a function of ``outside.py``, and return its result."""
        # Shielded, because an answer that nobody reads would be taken for the next command's.
        async with self._turn:
            with anyio.CancelScope(shield=True):
                await self._commands.send(json.dumps([verb, *arguments]).encode() + b"\n")
                answer = json.loads(await self._answers.receive_until(b"\n", 1 << 20))
        if "error" in answer:
            raise RuntimeError(f"outsider, {verb}{arguments}: {answer['error']}")
        return answer["result"]

    async def stop(self) -> None:
        """End the process and close the pipes."""
        await self._commands.aclose()
        await self._process.wait()
        await self._process.aclose()
