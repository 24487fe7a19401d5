"""``RemoteFolder``: the objects below an address of a store, by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal
from urllib.parse import quote, urlsplit

from .._arguments import check_kind, function, seconds
from .._hub.hub import Hub
from .._hub.opening import Opening
from .cache import RemoteCache
from .open_objects import Asked
from .remote_snapshot import RemoteSnapshot, SharedSnapshot
from .source import VALIDATORS, RemoteSource, without_secrets


class RemoteFolder:
    """The objects below an address of a store, by their names; ``MappedFiles`` serves one.

    It never lists objects, and sends no request before an object is opened.

    Args:
        cache: the cache that reads the objects.
        address: a URL to which names are appended: "s3://bucket/prefix". For a store of your own,
            a function that returns the source for a name, and waits for nothing:
            ``lambda name: ObstoreSource(store, f"prefix/{name}")``.
        validator: as for ``RemoteCache.open``.
        max_age: for how many seconds a server of the folder may send an object without asking the
            store whether it is still the same.
    Raises:
        ValueError, TypeError: if an argument makes no sense.
    """

    __slots__ = ("_address", "_cache", "_max_age", "_validator")

    def __init__(
        self,
        cache: RemoteCache,
        address: str | Callable[[str], RemoteSource],
        *,
        validator: Literal["etag", "modified", "none"] = "etag",
        max_age: float = 10.0,
    ) -> None:
        self._cache = check_kind(cache, RemoteCache, "cache", "pass an aiommap.remote.RemoteCache")
        if isinstance(address, str):
            _check_address(address)
        else:
            function(address, "address")
        self._address = address
        if validator not in VALIDATORS:
            raise ValueError(f"validator is {validator!r}: use one of {VALIDATORS}")
        self._validator: Literal["etag", "modified", "none"] = validator
        self._max_age = seconds(max_age, "max_age")

    @property
    def max_age(self) -> float:
        """For how many seconds an object may be served without asking the store."""
        return self._max_age

    def open(self, name: str) -> Opening[RemoteSnapshot]:
        """Open an object as ``RemoteCache.open`` does: ``async with folder.open("a/b") as s``.

        Args:
            name: the name below the address, without a leading slash: "2026/ranker.bin".
        Raises:
            ValueError: if the name or a part of it is empty, "." or "..".
            Others as ``RemoteCache.open``.
        Cancellation: as ``RemoteCache.open``.
        """
        return self._cache.open(self._source_of(name), validator=self._validator)

    def share(self, name: str, hub: Hub | None = None) -> Opening[RemoteSnapshot]:
        """Open an object to be shared by many tasks: ``snapshot = await folder.share(name)``.

        It is closed when nothing refers to it: its ``aclose`` does nothing.

        Args:
            name: as for ``open``.
            hub: as for ``RemoteCache.open``.
        Raises, Cancellation: as ``open``.
        """
        asked = Asked(self._source_of(name), self._validator, hub=hub)
        return Opening(partial(self._cache._open, asked, SharedSnapshot))  # noqa: SLF001  one wing

    def _source_of(self, name: str) -> str | RemoteSource:
        check_kind(name, str, "name", 'give a str, such as "2026/ranker.bin"')
        if not name or "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(f"{name!r} names no object below an address: write it as a/b")
        if isinstance(self._address, str):
            return f"{self._address.rstrip('/')}/{quote(name)}"
        return self._address(name)

    def __repr__(self) -> str:
        address = self._address
        return f"<RemoteFolder {without_secrets(address) if isinstance(address, str) else address}>"


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if not parts.scheme or parts.query or parts.fragment:
        raise ValueError(
            f"{without_secrets(address)} is no address that a name can be put behind: write it as "
            "s3://bucket/prefix, or pass a function that makes a source of a name"
        )
