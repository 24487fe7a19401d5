"""The cast: each actor is an async function that plays one scene, and knows what must result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .appending import killed_log, logs
from .cancelling import storm
from .following import folders
from .reading import readers
from .replacing import reopening, replacements, watched
from .resizing import growth, sizes, truncations
from .sharing import counters, ranges, turns
from .stage import Scene
from .storming import intrusions, outgrowths, refusals, resizes
from .writing import journal, killed, policies

Actor = Callable[[Scene], Awaitable[None]]

CAST: tuple[Actor, ...] = (
    *(readers, journal, policies, killed, storm),
    *(replacements, reopening, watched, folders),
    *(truncations, growth, sizes),
    *(resizes, refusals, outgrowths, intrusions),
    *(counters, turns, ranges),
    *(logs, killed_log),
)
