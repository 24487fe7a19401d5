"""The event loops that tests run on, by name."""

from __future__ import annotations

from typing import Any

import anyio

#: Backend and options, as anyio takes them.
LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def run_on(loop: str, main: Any, *arguments: Any) -> Any:
    """Run an async function on a loop, and return what it returns."""
    backend, options = LOOPS[loop]
    return anyio.run(main, *arguments, backend=backend, backend_options=options)
