"""``Opening``: the object that ``open`` and the like return, to be entered or awaited."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar


class Closing(Protocol):
    """A resource that the end of an ``async with`` block closes."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


Resource = TypeVar("Resource", bound=Closing)


class Opening(Generic[Resource]):
    """Something to open: use it with ``async with``, or ``await`` it and call ``aclose`` yourself.

    Nothing is open before that.
    """

    __slots__ = ("_begin", "_entered", "_opened")

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, Resource]]) -> None:
        self._begin = begin
        self._entered = False
        self._opened: Resource | None = None

    def __await__(self) -> Generator[Any, Any, Resource]:
        return self._begin().__await__()

    async def __aenter__(self) -> Resource:
        if self._entered:  # the end of a block could close only one of two resources
            raise RuntimeError("an opening is entered by one block at a time: make another one")
        self._entered = True
        try:
            self._opened = opened = await self._begin()
        except BaseException:
            self._entered = False
            raise
        return opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened, self._opened = self._opened, None
        self._entered = False
        assert opened is not None
        await opened.__aexit__(kind, error, traceback)

    # Hidden from type checkers, so that they report these mistakes, too.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(_not_open(f"has no {name!r}"), name=name, obj=self)

        def __enter__(self) -> NoReturn:
            raise TypeError(_not_open('cannot be used in a plain "with"'))

        def __exit__(self, *_: object) -> NoReturn:
            raise AssertionError("unreachable: __enter__ raises")


def _not_open(what: str) -> str:
    return (
        f'an Opening {what}, as nothing is open yet: write "async with aiommap.open(...) as f", '
        'or "f = await aiommap.open(...)"'
    )
