"""Who comes next where many want ranges of the same bytes; pure.

Theory of operation. For each stretch of bytes it is known who came last: the last one that wants
it alone, and those that came to share it since. Who comes waits for these only; all others are
waited for by them. So coming and going costs as much as there are stretches in the range, and not
as much as there are requests.

Invariant. Of two requests that conflict the later waits for the earlier, by itself or through
others in between; whoever goes leaves who waited for it to those it waited for itself.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter
from typing import Generic, Protocol, TypeVar


class Range(Protocol):
    """What wants a half-open range of bytes, alone or shared."""

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
        #: How many came before it.
        self.number = number
        #: Whom it waits for, and who waits for it.
        self.before: dict[_Place[Request], None] = {}
        self.after: dict[_Place[Request], None] = {}

    def wait_for(self, other: _Place[Request]) -> None:
        self.before[other] = None
        other.after[self] = None


class _Last(Generic[Request]):
    """Who came last for one stretch of bytes."""

    __slots__ = ("alone", "sharing")

    def __init__(
        self,
        alone: _Place[Request] | None = None,
        sharing: dict[_Place[Request], None] | None = None,
    ) -> None:
        self.alone = alone
        #: Those who came since; a dictionary, as sets have no order.
        self.sharing = sharing or {}

    def same_as(self, other: _Last[Request]) -> bool:
        return self.alone is other.alone and self.sharing == other.sharing


class Turns(Generic[Request]):
    """Gives turns to requests, first come, first served, where they conflict."""

    __slots__ = ("_entered", "_last", "_places", "_starts")

    def __init__(self) -> None:
        self._entered = 0
        self._places: dict[Request, _Place[Request]] = {}
        #: Where each stretch starts; it goes on to the next one, and the last one without end.
        self._starts: list[int] = [0]
        self._last: list[_Last[Request]] = [_Last()]

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, request: Request) -> bool:
        """Put a request behind all others; tell whether it has its turn at once."""
        place = self._places[request] = _Place(request, self._entered)
        self._entered += 1
        if request.offset == request.end:
            return True
        first, end = self._stretches(request.offset, request.end)
        for last in self._last[first:end]:
            if last.alone is not None:
                place.wait_for(last.alone)
            if not request.shared:
                for other in last.sharing:
                    place.wait_for(other)
        self._came(place, request.offset, request.end)
        return not place.before

    def leave(self, request: Request) -> list[Request]:
        """Take a request out, whether or not it had its turn; return those that have theirs now."""
        place = self._places.pop(request)
        if request.offset == request.end:
            return []
        for earlier in place.before:
            del earlier.after[place]
        self._went(place)
        turns: list[Request] = []
        for later in sorted(place.after, key=_number):
            del later.before[place]
            for earlier in place.before:
                if _conflict(earlier.request, later.request):
                    later.wait_for(earlier)
            if not later.before:
                turns.append(later.request)
        return turns

    def _came(self, place: _Place[Request], offset: int, end: int) -> None:
        """Note that a request came last for a range."""
        first, behind = self._stretches(offset, end)
        if place.request.shared:
            for last in self._last[first:behind]:
                last.sharing[place] = None
        else:
            self._starts[first:behind] = [offset]
            self._last[first:behind] = [_Last(place)]

    def _went(self, place: _Place[Request]) -> None:
        """Note that a request is gone: who came before it came last, where nobody came since."""
        request = place.request
        first, behind = self._stretches(request.offset, request.end)
        for last in self._last[first:behind]:
            if request.shared:
                last.sharing.pop(place, None)
        if not request.shared and place.before:
            self._restore(place, first, behind)
        elif not request.shared:
            for last in self._last[first:behind]:
                if last.alone is place:
                    last.alone = None
        self._join(request.offset, request.end)

    def _restore(self, place: _Place[Request], first: int, behind: int) -> None:
        """Put those before a request that gave up in its place."""
        ends = [*self._starts[first + 1 : behind], place.request.end]
        held = zip(self._starts[first:behind], ends, self._last[first:behind], strict=True)
        before = sorted(place.before, key=_number)
        for offset, end, last in tuple(held):
            if last.alone is not place:
                continue
            last.alone, since, last.sharing = None, last.sharing, {}
            for earlier in before:
                low, high = max(offset, earlier.request.offset), min(end, earlier.request.end)
                if low < high:
                    self._came(earlier, low, high)
            for later in since:
                self._came(later, offset, end)

    def _stretches(self, offset: int, end: int) -> tuple[int, int]:
        """Return which stretches make up a range, after cutting those that leave it."""
        return self._cut(offset), self._cut(end)

    def _cut(self, at: int) -> int:
        index = bisect_left(self._starts, at)
        if index == len(self._starts) or self._starts[index] != at:
            whole = self._last[index - 1]
            self._starts.insert(index, at)
            self._last.insert(index, _Last(whole.alone, dict(whole.sharing)))
        return index

    def _join(self, offset: int, end: int) -> None:
        """Make one stretch of neighbours, in and around a range, for which the same came last."""
        first = max(bisect_left(self._starts, offset) - 1, 0)
        behind = min(bisect_left(self._starts, end) + 1, len(self._starts))
        starts: list[int] = []
        kept: list[_Last[Request]] = []
        for start, last in zip(self._starts[first:behind], self._last[first:behind], strict=True):
            if not (kept and kept[-1].same_as(last)):
                starts.append(start)
                kept.append(last)
        self._starts[first:behind] = starts
        self._last[first:behind] = kept


def _conflict(one: Range, other: Range) -> bool:
    overlap = max(one.offset, other.offset) < min(one.end, other.end)
    return overlap and not (one.shared and other.shared)
