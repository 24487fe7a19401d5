"""``async with`` blocks made from two functions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


async def close_after(
    error: BaseException | None,
    close: Callable[[], Awaitable[object]],
    name: str,
    failures: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> None:
    """Close at the end of a block; a failure becomes a note of the exception under way, if any."""
    try:
        await close()
    except failures as failure:
        if error is None:
            raise
        error.add_note(f"closing {name} failed, too: {failure}")


class Block(AbstractAsyncContextManager[None], Generic[T]):
    """One block.

    It is not an async generator: the loop finalizes those, and a closed loop never does. So what a
    generator holds would be held for good.

    Args:
        enter: called at the beginning; its result is passed to ``leave``.
        leave: called at the end, also after an error.
    """

    __slots__ = ("_enter", "_held", "_leave")

    def __init__(
        self, enter: Callable[[], Awaitable[T]], leave: Callable[[T], Awaitable[object]]
    ) -> None:
        self._enter: Callable[[], Awaitable[T]] | None = enter
        self._leave = leave
        self._held: list[T] = []

    async def __aenter__(self) -> None:
        enter, self._enter = self._enter, None
        if enter is None:
            raise RuntimeError("a block is entered once: make another one by the same call")
        self._held.append(await enter())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave(self._held.pop())
