"""What a source has to do: tell the state of an object, and fetch a range of it; pure."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from .._errors import UnsupportedError
from .._typing import Buffer

#: What tells two states of an object apart.
VALIDATORS = ("etag", "modified", "none")

_USERINFO = re.compile(r"(?<=://)[^/?#\s\"]*@")
_QUERY = re.compile(r"(?<=[^\s\"?#])[?#][^\s\"]*")


@dataclass(frozen=True, slots=True)
class RemoteState:
    """The state of an object, as one response gave it. No state mixes two responses.

    Attributes:
        size: bytes of the whole object.
        etag: its ETag, as the server sent it, quotes included; None if it sent none.
        version: its version, in a bucket that keeps versions; else None.
        modified: its time of modification, as text that is equal for equal times; None if the
            server did not say.
    """

    size: int
    etag: str | None = None
    version: str | None = None
    modified: str | None = None


@runtime_checkable
class RemoteSource(Protocol):
    """Reads one object of a store. Its methods block: they are called in worker threads only.

    ``ObstoreSource`` and ``FsspecSource`` are sources, and so is any class with these members. A
    source never writes to the store.

    Concurrency: any number of threads may call it at a time, also for ranges that overlap.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """The object's address, endpoint included; without user, password, query or fragment.

        Two sources with the same address are of the same object: the cache finds it by the address.
        """

    @abstractmethod
    def stat(self, known: RemoteState | None) -> RemoteState | None:
        """Ask the store for the state of the object now (HEAD).

        Args:
            known: the state of the last answer; None to ask without a condition.
        Returns:
            Its state; None if that is still ``known``.
        Raises:
            FileNotFoundError: if there is no such object.
            PermissionError: if the store refuses access.
            RemoteError: for any other failure, after the engine's own retries.
        """

    @abstractmethod
    def fetch(self, start: int, end: int, state: RemoteState) -> tuple[Buffer, RemoteState]:
        """Fetch the bytes [start, end) in one request (GET).

        Args:
            start, end: 0 <= start < end <= ``state.size``.
            state: the state that the object has to be in: send its ETag as If-Match, and ask for
                its version.
        Returns:
            The bytes, exactly ``end - start`` of them, and the state that the response itself gave.
            The cache compares that with the state that it asked for.
        Raises:
            StaleSnapshotError: if the store says that the object is in another state.
            FileNotFoundError, PermissionError, RemoteError: as ``stat``.
        """


@runtime_checkable
class OpeningSource(Protocol):
    """A source that says what its object is together with the first bytes of it."""

    @abstractmethod
    def begin(self, length: int) -> tuple[RemoteState, Callable[[], Buffer]] | None:
        """Ask for the bytes [0, length) in one request (GET).

        Returns:
            The state, as soon as the head of the response is there; and a function that waits for
            the bytes, as many of them as the object has. None if the server gives no range of this
            object, as of an empty one: ``stat`` tells its state.
        Raises:
            FileNotFoundError, PermissionError, RemoteError: as ``stat``.
        """


class BegunSource:
    """A source whose first response is on its way: a fetch of its bytes takes them from there.

    Args:
        source: fetches everything else.
        state: what the response told.
        length: how many bytes the response has.
        body: waits for them.
    """

    __slots__ = ("_body", "_length", "_source", "_state")

    def __init__(
        self, source: RemoteSource, state: RemoteState, length: int, body: Callable[[], Buffer]
    ) -> None:
        self._source = source
        self._state = state
        self._length = length
        self._body: Callable[[], Buffer] | None = body

    @property
    def url(self) -> str:
        return self._source.url

    def has(self, start: int, end: int) -> bool:
        """Tell whether these are the bytes that are on their way, and nobody asked for them yet."""
        return self._body is not None and (start, end) == (0, self._length)

    def stat(self, known: RemoteState | None) -> RemoteState | None:
        return self._source.stat(known)

    def fetch(self, start: int, end: int, state: RemoteState) -> tuple[Buffer, RemoteState]:
        body = self._body
        if body is None or not self.has(start, end):
            return self._source.fetch(start, end, state)
        self._body = None
        return body(), self._state


@runtime_checkable
class VersionedSource(Protocol):
    """A source that can be bound to one version of its object."""

    @abstractmethod
    def at_version(self, version: str) -> RemoteSource:
        """Return a source that reads this version, whatever is written to the object later."""


@runtime_checkable
class PointingSource(Protocol):
    """A source that finds other objects beside its own."""

    @abstractmethod
    def beside(self, name: str) -> RemoteSource:
        """Return a source of an object whose name is relative to this one's."""


def without_secrets(text: str) -> str:
    """Remove users, passwords, queries and fragments from each URL in a text (R13)."""
    return _QUERY.sub("", _USERINFO.sub("", text))


def _check_etag(url: str, state: RemoteState) -> None:
    etag = state.etag
    if etag and etag[:2].lower() != "w/" and etag.strip('"') and etag != "*":
        return
    if etag is None:
        found = "sends no ETag"
    elif etag[:2].lower() == "w/":
        found = f"sends a weak ETag, {etag}"
    else:
        found = f"sends an ETag that tells nothing apart, {etag!r}"
    raise UnsupportedError(
        f"cache {url}",
        f"the server {found}, so that a change of the object could go unseen: pass "
        'validator="modified" to believe its time of modification, or "none" if the object '
        "never changes",
    )


def _check_modified(url: str, state: RemoteState) -> None:
    if state.modified is None:
        raise UnsupportedError(
            f"cache {url}",
            'the server does not say when the object was modified: pass validator="etag", or '
            '"none" if it never changes',
        )


_CHECKS: dict[str, Callable[[str, RemoteState], None]] = {
    "etag": _check_etag,
    "modified": _check_modified,
}


@dataclass(frozen=True, slots=True)
class ObjectIdentity:
    """The identity of an object that was opened; every response has to agree with it (R2).

    Attributes:
        url: the address of the object.
        state: its state when it was opened.
        validator: the field of the state that counts besides size and version.
    """

    url: str
    state: RemoteState
    validator: str = "etag"

    @classmethod
    def of(cls, url: str, state: RemoteState, validator: str) -> ObjectIdentity:
        """Make the identity of an object from the state that the server gave.

        Raises:
            UnsupportedError: if the state lacks the validator.
        """
        if validator in _CHECKS:
            _CHECKS[validator](url, state)
        return cls(url, state, validator)

    @property
    def key(self) -> tuple[str, ...]:
        """The parts by which two identities differ."""
        state = self.state
        mark = {"etag": state.etag, "modified": state.modified, "none": ""}[self.validator]
        return (self.url, self.validator, mark or "", state.version or "", str(state.size))

    def is_of(self, state: RemoteState) -> bool:
        """Tell whether a response was about this object in the state in which it was opened.

        Versions are compared only if both states have one: a store need not send it in each
        response.
        """
        mine = self.state
        if state is mine:
            return True
        if state.size != mine.size:
            return False
        if None not in (mine.version, state.version) and mine.version != state.version:
            return False
        if self.validator == "etag":
            return state.etag == mine.etag
        return self.validator == "none" or state.modified == mine.modified
