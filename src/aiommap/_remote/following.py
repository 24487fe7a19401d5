"""Following an object of a store that is overwritten, or a pointer to one."""

from __future__ import annotations

from collections.abc import AsyncIterator

from anyio.abc import AsyncResource

from .remote_snapshot import RemoteSnapshot


class LiveRemoteSnapshot(AsyncResource):
    """The newest good object of a key, as a snapshot; made by ``RemoteCache.follow``.

    Ask for ``current`` when a piece of work begins, and use that snapshot to its end: it is one
    version of the object, and stays open for as long as you refer to it, or to a view of it, also
    when a newer one is in service.

    Concurrency: for tasks of the event loop it was made in; any number of them.
    """

    __slots__ = ("__weakref__",)

    @property
    def current(self) -> RemoteSnapshot:
        """The snapshot in service; the same object until the next one is.

        It is closed when nothing refers to it any more: its ``aclose`` does nothing.

        Raises:
            anyio.ClosedResourceError: if following has ended.
        """
        raise NotImplementedError

    @property
    def generation(self) -> int:
        """How many objects have been in service so far; 1 for the first."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The address that is followed."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether following has ended, by ``aclose`` or with the cache."""
        raise NotImplementedError

    def __aiter__(self) -> AsyncIterator[RemoteSnapshot]:
        """Iterate over generations: the current one, then each that follows it."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """End following and close all generations, each after the last hold on it."""
        raise NotImplementedError
