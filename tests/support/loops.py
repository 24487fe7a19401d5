"""The event loops that tests run on, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import uvloop

#: Backend and options, as anyio takes them.
LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def _new_loop_of_python_tasks() -> asyncio.AbstractEventLoop:
    """Make a loop whose tasks are those that asyncio has in Python."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(
        lambda loop, coroutine, **options: asyncio.tasks._PyTask(coroutine, loop=loop, **options)  # type: ignore[attr-defined]
    )
    return loop


#: Functions that make a loop, one for each kind of tasks that there is for asyncio, by name.
NEW_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
    "asyncio-python": _new_loop_of_python_tasks,
}


def run_on(loop: str, main: Any, *arguments: Any) -> Any:
    """Run an async function on a loop, and return what it returns."""
    backend, options = LOOPS[loop]
    return anyio.run(main, *arguments, backend=backend, backend_options=options)
