"""The state that the parts of the demo share: the file, the screen, and the outcomes so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio.to_thread

import aiommap

from .._measure import Measurement
from .._screen import Screen
from .._system import drop_pages, visible_residency
from .._text import format_rate, format_seconds, format_share

# The kernel may read a few pages again; with a larger share resident, "cold" would be false.
_STILL_COLD = 0.01

_OURS, _THEIRS = "aiommap", "mmap in a thread"

HEADERS = ("", _OURS, _THEIRS, "faster")


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise, which is kept or not, whatever the speed.

    Attributes:
        name: what was tried.
        ours: the outcome with aiommap.
        theirs: the outcome with stdlib mmap.
    """

    name: str
    ours: str
    theirs: str

    def row(self) -> tuple[str, ...]:
        """Return the cells of the closing table."""
        return (self.name, self.ours, self.theirs, "")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One piece of work, done twice in one run: by aiommap, and by stdlib mmap in a thread.

    Attributes:
        name: what was done.
        ours: the measurement of aiommap.
        theirs: the measurement of stdlib mmap in a thread.
        waits: whether the loop would wait for the disk if it did the work itself.
    """

    name: str
    ours: Measurement
    theirs: Measurement
    waits: bool

    def wait_row(self) -> tuple[str, ...]:
        """Return the cells of the closing table for the wait of the loop."""
        ours, theirs = self.ours.worst_wait, self.theirs.worst_wait
        return (f"loop waited, {self.name}", format_seconds(ours), format_seconds(theirs), "")

    def speed_row(self) -> tuple[str, ...]:
        """Return the cells of the closing table for the speed."""
        factor = f"{self.theirs.seconds_each / self.ours.seconds_each:.1f}x"
        return (self.name, _speed(self.ours), _speed(self.theirs), factor)

    def as_json(self) -> dict[str, object]:
        """Return both measurements under their names."""
        return {
            "name": self.name,
            "aiommap": self.ours.as_json(),
            "stdlib_mmap_in_thread": self.theirs.as_json(),
        }


def _speed(measured: Measurement) -> str:
    if measured.counted:
        return f"{measured.operations_per_second:,.0f}/s"
    return format_rate(measured.length, measured.seconds)


@dataclass(slots=True)
class Stage:
    """The demo in progress.

    Attributes:
        screen: where the demo writes.
        path: the file on which it runs.
        span: how many bytes it uses, from the start of the file.
        tasks: how many tasks read or write at the same time.
        seconds: how long each timed part runs.
        promises: the promises that were tried so far.
        comparisons: the comparisons that were measured so far.
        never_cold: whether pages stayed in memory when they should have been dropped.
    """

    screen: Screen
    path: str
    span: int
    tasks: int
    seconds: float
    promises: list[Promise] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    never_cold: bool = False

    def tell(self, text: str) -> None:
        """Write what happened in this part."""
        self.screen.say(f"  {text}")

    def promise(self, name: str, ours: str, theirs: str) -> None:
        """Add a promise to the closing table."""
        self.promises.append(Promise(name, ours, theirs))

    def compare(
        self, name: str, ours: Measurement, theirs: Measurement, *, waits: bool = True
    ) -> None:
        """Add a comparison to the closing table, and show it."""
        self.comparisons.append(Comparison(name, ours, theirs, waits))
        for who, measured in ((_OURS, ours), (_THEIRS, theirs)):
            took = (
                f"p50 {format_seconds(measured.percentile(0.5))}"
                if measured.latencies
                else f"in {format_seconds(measured.seconds)}"
            )
            self.screen.line(
                f"  {who:<{len(_THEIRS)}}  {_speed(measured):>12}  {took:<12}  "
                f"loop waited {format_seconds(measured.worst_wait)}"
            )

    def close(self) -> None:
        """Show the closing table: the promises, how long the loop waited, and how much was done."""
        rows = [promise.row() for promise in self.promises]
        rows += [found.wait_row() for found in self.comparisons if found.waits]
        rows += [found.speed_row() for found in self.comparisons]
        self.screen.heading("What this run showed")
        self.screen.table(HEADERS, rows)

    async def make_cold(self) -> None:
        """Drop the pages of the file; if some stay in memory, say so, once."""
        await anyio.to_thread.run_sync(drop_pages, self.path)
        async with aiommap.open(self.path) as file:
            residency = await visible_residency(file, 0, self.span)
        if residency and residency.fraction > _STILL_COLD and not self.never_cold:
            self.never_cold = True
            stayed = format_share(residency.fraction, 1)
            note = (
                f"  note: {stayed} of the file stayed in memory when it was to be dropped (a file "
                'system in memory, or pages in use elsewhere): what is called "cold" here is not, '
                "or only in part"
            )
            self.screen.say(note, "yellow")
