"""One step for each file of a command: a failure is reported, and the other files are done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import aiommap

from ._screen import Screen

Outcome = TypeVar("Outcome")


async def for_each_file(
    paths: Sequence[str],
    screen: Screen,
    step: Callable[[aiommap.Hub, str], Awaitable[Outcome]],
    show: Callable[[Outcome], None],
) -> list[Outcome]:
    """Take the step for one file after another, and show each outcome at once."""
    outcomes: list[Outcome] = []
    async with aiommap.Hub() as hub:
        for path in paths:
            try:
                outcome = await step(hub, path)
            except (OSError, ValueError) as error:
                screen.problem(path, error)
                continue
            outcomes.append(outcome)
            show(outcome)
    return outcomes
