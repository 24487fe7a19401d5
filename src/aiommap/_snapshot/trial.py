"""The application's part of a trial: ``validate`` and ``load``, each in a task of its own.

A stray cancellation in such a task fails the trial, and does not end following.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from .._runtime.callbacks import call_user
from .snapshot import Snapshot

Loaded = TypeVar("Loaded")

Validate = Callable[[Snapshot], Awaitable[object]]
Load = Callable[[Snapshot], Awaitable[Loaded]]


async def call_load(load: Load[Loaded], candidate: Snapshot) -> Loaded:
    """Return what ``load`` returns for a candidate, or raise what it raises."""
    return cast("Loaded", await call_user(_call, load, candidate))


async def call_validate(validate: Validate, candidate: Snapshot) -> None:
    """Raise if ``validate`` does, or returns False."""
    if await call_user(_call, validate, candidate) is False:
        raise ValueError(f"{candidate.path}: validate returned False, so it is not served")


async def _call(function: Callable[[Snapshot], Awaitable[object]], candidate: Snapshot) -> object:
    answer = function(candidate)
    if not isinstance(answer, Awaitable):
        raise TypeError(f"{function!r} returned {answer!r}: it has to be async")
    return await answer
