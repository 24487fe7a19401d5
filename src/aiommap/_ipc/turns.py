"""The order in which requests for overlapping ranges get their turns; pure.

Theory of operation. Each stretch of bytes knows its latest requests: the last exclusive one, and
the shared ones after it. A new request waits only for these, because they wait for all earlier
ones. So entering and leaving cost one step for each stretch of the range, and not for each request.
Shared requests do not wait for each other, so a stretch knows all of them. If n shared requests
overlap, each with a range of its own, they cut 2n stretches that know up to n requests each. Then a
request costs up to n steps for each stretch that it cuts or joins.

Invariants.
  1  Of two requests that conflict, the later one waits for the earlier one, directly or through
     others. When a request leaves, those that waited for it wait for those that it waited for.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter
from typing import Generic, Protocol, TypeVar


class Range(Protocol):
    """A request for a half-open range of bytes, exclusive or shared."""

    @property
    def offset(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def shared(self) -> bool: ...


_number = attrgetter("number")

Request = TypeVar("Request", bound=Range)


class _Place(Generic[Request]):
    """One request among the others."""

    __slots__ = ("after", "before", "number", "request")

    def __init__(self, request: Request, number: int) -> None:
        self.request = request
        #: How many requests came before it.
        self.number = number
        #: The requests that it waits for, and the requests that wait for it.
        self.before: dict[_Place[Request], None] = {}
        self.after: dict[_Place[Request], None] = {}

    def wait_for(self, other: _Place[Request]) -> None:
        self.before[other] = None
        other.after[self] = None


class _Latest(Generic[Request]):
    """The latest requests for one stretch of bytes."""

    __slots__ = ("alone", "sharing")

    def __init__(
        self,
        alone: _Place[Request] | None = None,
        sharing: dict[_Place[Request], None] | None = None,
    ) -> None:
        self.alone = alone
        #: The shared ones after ``alone``; a dictionary, because sets have no order.
        self.sharing = sharing or {}

    def same_as(self, other: _Latest[Request]) -> bool:
        return self.alone is other.alone and self.sharing == other.sharing

    def remove(self, place: _Place[Request]) -> None:
        """Forget a request that leaves."""
        self.sharing.pop(place, None)
        if self.alone is place:
            self.alone = None

    def clear(self) -> list[_Place[Request]]:
        """Forget all requests, and return the shared ones."""
        sharing = [*self.sharing]
        self.alone, self.sharing = None, {}
        return sharing


class Turns(Generic[Request]):
    """Gives turns to requests; those that conflict get theirs in the order in which they came."""

    __slots__ = ("_entered", "_latest", "_places", "_starts")

    def __init__(self) -> None:
        self._entered = 0
        self._places: dict[Request, _Place[Request]] = {}
        #: Where each stretch starts. It ends where the next one starts; the last one has no end.
        self._starts: list[int] = [0]
        self._latest: list[_Latest[Request]] = [_Latest()]

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, request: Request) -> bool:
        """Add a request behind all others; tell whether it has its turn at once."""
        place = self._places[request] = _Place(request, self._entered)
        self._entered += 1
        if request.offset == request.end:
            return True
        first, end = self._stretches(request.offset, request.end)
        for latest in self._latest[first:end]:
            if latest.alone is not None:
                place.wait_for(latest.alone)
            if not request.shared:
                for other in latest.sharing:
                    place.wait_for(other)
        self._set_latest(place, request.offset, request.end)
        return not place.before

    def leave(self, request: Request) -> list[Request]:
        """Remove a request, with or without its turn; return the requests whose turn has come."""
        place = self._places.pop(request)
        if request.offset == request.end:
            return []
        for earlier in place.before:
            del earlier.after[place]
        self._remove_latest(place)
        turns: list[Request] = []
        for later in sorted(place.after, key=_number):
            del later.before[place]
            for earlier in place.before:
                if _conflict(earlier.request, later.request):
                    later.wait_for(earlier)
            if not later.before:
                turns.append(later.request)
        return turns

    def _set_latest(self, place: _Place[Request], offset: int, end: int) -> None:
        """Make a request the latest one of a range."""
        first, behind = self._stretches(offset, end)
        if place.request.shared:
            for latest in self._latest[first:behind]:
                latest.sharing[place] = None
        else:
            self._starts[first:behind] = [offset]
            self._latest[first:behind] = [_Latest(place)]

    def _remove_latest(self, place: _Place[Request]) -> None:
        """Forget a request; where it was the latest one, make earlier ones the latest again."""
        request = place.request
        first, behind = self._stretches(request.offset, request.end)
        if not request.shared and place.before:
            self._restore(place, first, behind)
        else:
            for latest in self._latest[first:behind]:
                latest.remove(place)
        self._join(request.offset, request.end)

    def _restore(self, place: _Place[Request], first: int, behind: int) -> None:
        """Put the requests before an exclusive one that left early in its place."""
        ends = [*self._starts[first + 1 : behind], place.request.end]
        stretches = zip(self._starts[first:behind], ends, self._latest[first:behind], strict=True)
        before = sorted(place.before, key=_number)
        for offset, end, latest in tuple(stretches):
            if latest.alone is not place:
                continue
            since = latest.clear()
            for earlier in before:
                low, high = max(offset, earlier.request.offset), min(end, earlier.request.end)
                if low < high:
                    self._set_latest(earlier, low, high)
            for later in since:
                self._set_latest(later, offset, end)

    def _stretches(self, offset: int, end: int) -> tuple[int, int]:
        """Cut stretches at both ends of a range; return the first one in it and the one behind."""
        return self._cut(offset), self._cut(end)

    def _cut(self, at: int) -> int:
        index = bisect_left(self._starts, at)
        if index == len(self._starts) or self._starts[index] != at:
            whole = self._latest[index - 1]
            self._starts.insert(index, at)
            self._latest.insert(index, _Latest(whole.alone, dict(whole.sharing)))
        return index

    def _join(self, offset: int, end: int) -> None:
        """Join neighbours in and around a range that have the same latest requests."""
        first = max(bisect_left(self._starts, offset) - 1, 0)
        behind = min(bisect_left(self._starts, end) + 1, len(self._starts))
        starts: list[int] = []
        kept: list[_Latest[Request]] = []
        for start, latest in zip(
            self._starts[first:behind], self._latest[first:behind], strict=True
        ):
            if not (kept and kept[-1].same_as(latest)):
                starts.append(start)
                kept.append(latest)
        self._starts[first:behind] = starts
        self._latest[first:behind] = kept


def _conflict(one: Range, other: Range) -> bool:
    overlap = max(one.offset, other.offset) < min(one.end, other.end)
    return overlap and not (one.shared and other.shared)
