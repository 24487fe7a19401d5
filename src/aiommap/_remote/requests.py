"""The requests for one object; each response is compared with its identity (R2). Worker threads."""

from __future__ import annotations

import time

from .._errors import RemoteError, StaleSnapshotError
from .counters import Counters
from .source import BegunSource, ObjectIdentity, RemoteSource, RemoteState

#: How often we ask for a range while the store answers about another object than it has.
ATTEMPTS = 3


class Requests:
    """Asks sources for an object, and believes no response that is about another one.

    Args:
        identity: what each response has to agree with.
        counters: the counters of the cache.
    """

    __slots__ = ("_counters", "_identity", "recent_seconds")

    def __init__(self, identity: ObjectIdentity, counters: Counters) -> None:
        self._identity = identity
        self._counters = counters
        #: How long the slowest requests took lately: if all are slow, an owner may be, too.
        self.recent_seconds: float = 0.0

    def fetch(self, source: RemoteSource, start: int, end: int) -> memoryview:
        """Request bytes; ask again, up to ``ATTEMPTS`` times, if a response has another state."""
        reason = ""
        for attempt in range(1, ATTEMPTS + 1):
            begun = isinstance(source, BegunSource) and source.has(start, end)
            if not begun:  # a begun GET was counted when it was sent
                self._counters.add_to("gets")
            began = time.monotonic()
            try:
                data, state = source.fetch(start, end, self._identity.state)
            except StaleSnapshotError:
                reason = "the store says that it is another object, and then that it is not"
            except FileNotFoundError:
                raise self._stale("is gone", 0) from None
            except RemoteError as error:
                self._check(source)
                raise RemoteError(
                    error.url,
                    error.reason,
                    start,
                    end - start,
                    error.status,
                    attempt - 1 + error.attempts,
                ) from None
            else:
                took = time.monotonic() - began
                self.recent_seconds = max(took, 0.9 * self.recent_seconds)
                view = memoryview(data).cast("B")
                self._counters.add_to("fetched_bytes", len(view))
                if len(view) == end - start and self._identity.is_of(state):
                    return view
                reason = self._difference(state, len(view), end - start)
            self._check(source)
        raise RemoteError(self._identity.url, reason, start, end - start, None, ATTEMPTS)

    def _difference(self, state: RemoteState, got: int, asked: int) -> str:
        if self._identity.is_of(state):
            return f"{got} bytes came in place of {asked}"
        return f"the responses are about another object ({state}), which the store does not have"

    def _check(self, source: RemoteSource) -> None:
        """Ask the store; raise if it has another state of the object, or none."""
        self._counters.add(heads=1)
        try:
            now = source.stat(None)
        except FileNotFoundError:
            raise self._stale("is gone", 0) from None
        except RemoteError:
            return  # the state is not known: the caller raises what brought it here
        if now is not None and not self._identity.is_of(now):
            raise self._stale("was changed", now.size)

    def verify(self, source: RemoteSource) -> None:
        """Raise unless the store still has the object in the state of the identity."""
        self._counters.add(heads=1)
        try:
            now = source.stat(self._identity.state)
        except FileNotFoundError:
            raise self._stale("is gone", 0) from None
        if now is not None and not self._identity.is_of(now):
            raise self._stale("was changed", now.size)

    def _stale(self, what: str, size: int) -> StaleSnapshotError:
        return StaleSnapshotError(self._identity.url, self._identity.state.size, size, what)
