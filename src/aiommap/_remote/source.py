"""What an engine has to do: say what an object is, and fetch a range of it; pure."""

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
    """What one response said of an object. Two responses are never mixed in one state.

    Attributes:
        size: bytes of the whole object.
        etag: its entity tag, with its quotes as the server sent it; None if it sent none.
        version: its version, in a bucket that keeps versions; else None.
        modified: when it was modified, as text that is the same for the same moment; None if the
            server did not say.
    """

    size: int
    etag: str | None = None
    version: str | None = None
    modified: str | None = None


@runtime_checkable
class RemoteSource(Protocol):
    """One object of a store, as an engine reaches it. Blocking: called in worker threads only.

    ``ObstoreSource`` and ``FsspecSource`` are two; any class with these members is another one.
    The remote side is never written to.

    Concurrency: any number of threads call it at once, also for ranges that overlap.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """The object's address, endpoint included; without user, password, query or fragment.

        Sources with one address are of one object: the cache finds it again by this.
        """

    @abstractmethod
    def stat(self, known: RemoteState | None) -> RemoteState | None:
        """Ask what the object is now (HEAD).

        Args:
            known: what it was when it was asked last; None to ask without a condition.
        Returns:
            Its state; None if it is as known.
        Raises:
            FileNotFoundError, PermissionError: as the store says.
            RemoteError: for any other failure, after the engine's own retries.
        """

    @abstractmethod
    def fetch(self, start: int, end: int, state: RemoteState) -> tuple[Buffer, RemoteState]:
        """Fetch the bytes [start, end) in one request (GET).

        Args:
            start, end: 0 <= start < end <= ``state.size``.
            state: what the object has to be: pass its ETag as If-Match, and read its version.
        Returns:
            The bytes, exactly ``end - start`` of them, and the state that the response itself told.
            The cache compares it with the one that it asked for.
        Raises:
            StaleSnapshotError: if the store says that the object is another one by now.
            FileNotFoundError, PermissionError, RemoteError: as ``stat``.
        """


@runtime_checkable
class VersionedSource(Protocol):
    """A source that can be bound to one version of its object."""

    @abstractmethod
    def at_version(self, version: str) -> RemoteSource:
        """Return a source of this version, whatever is written to the object later."""


@runtime_checkable
class PointingSource(Protocol):
    """A source that finds other objects beside its own."""

    @abstractmethod
    def beside(self, name: str) -> RemoteSource:
        """Return a source of an object whose name is relative to this one's."""


def without_secrets(text: str) -> str:
    """Take users, passwords, queries and fragments out of each URL in a text (R13)."""
    return _QUERY.sub("", _USERINFO.sub("", text))


def _check_etag(url: str, state: RemoteState) -> None:
    if state.etag is None or state.etag.startswith("W/"):
        found = "sends no ETag" if state.etag is None else f"sends a weak ETag, {state.etag},"
        raise UnsupportedError(
            f"cache {url}",
            f"the server {found} so that a change of the object could go unseen: pass "
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
    """What every response has to agree with: the file's identity (R2).

    Attributes:
        url: where the object is.
        state: what it was when it was opened.
        validator: which of its fields count beside the size.
    """

    url: str
    state: RemoteState
    validator: str = "etag"

    @classmethod
    def of(cls, url: str, state: RemoteState, validator: str) -> ObjectIdentity:
        """Take what a server said, or refuse what cannot tell one object from another.

        Raises:
            UnsupportedError: if the server sends no such validator.
        """
        if validator in _CHECKS:
            _CHECKS[validator](url, state)
        return cls(url, state, validator)

    @property
    def key(self) -> tuple[str, ...]:
        """The parts that make two identities different."""
        state = self.state
        mark = {"etag": state.etag, "modified": state.modified, "none": ""}[self.validator]
        return (self.url, self.validator, mark or "", state.version or "", str(state.size))

    def is_of(self, state: RemoteState) -> bool:
        """Tell whether a response was about this object as it was when it was opened.

        A version counts only where both have one: not every response of a store tells it.
        """
        mine = self.state
        if state.size != mine.size:
            return False
        if None not in (mine.version, state.version) and mine.version != state.version:
            return False
        if self.validator == "etag":
            return state.etag == mine.etag
        return self.validator == "none" or state.modified == mine.modified
