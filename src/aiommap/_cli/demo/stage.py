"""What the parts of the demo share: the file, the screen, and the outcomes they collect."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio.to_thread

import aiommap

from .._measure import Measurement
from .._screen import Screen
from .._system import drop_pages, visible_residency
from .._text import format_rate, format_seconds, format_share

# A page or two may come back on their own; more than this and "cold" would be a false word.
_STILL_COLD = 0.01

_OURS, _THEIRS = "aiommap", "mmap in a thread"

HEADERS = ("", _OURS, _THEIRS, "faster")


@dataclass(frozen=True, slots=True)
class Promise:
    """Something that is kept or not, whatever the speed.

    Attributes:
        name: what was tried.
        ours: what came of it with aiommap.
        theirs: what came of it with stdlib mmap.
    """

    name: str
    ours: str
    theirs: str

    def row(self) -> tuple[str, ...]:
        """Return the cells of the closing table."""
        return (self.name, self.ours, self.theirs, "")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One piece of work done twice in one run: through aiommap, and by stdlib mmap in a thread.

    Attributes:
        name: what was done.
        ours: how aiommap did.
        theirs: how stdlib mmap in a thread did.
        waits: whether the loop would wait for the disk if it did the work itself.
    """

    name: str
    ours: Measurement
    theirs: Measurement
    waits: bool

    def wait_row(self) -> tuple[str, ...]:
        """Return the cells of the closing table that tell how long the loop waited."""
        ours, theirs = self.ours.worst_wait, self.theirs.worst_wait
        return (f"loop waited, {self.name}", format_seconds(ours), format_seconds(theirs), "")

    def speed_row(self) -> tuple[str, ...]:
        """Return the cells of the closing table that tell how much was done."""
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
        screen: where it is told.
        path: the file it runs on.
        span: how many bytes of the file, from its start, it uses.
        tasks: how many tasks read or write at once.
        seconds: how long each timed part runs.
        promises: what was kept or not so far.
        comparisons: what was measured so far.
        never_cold: set once pages could not be dropped.
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
        """Say what happened in this part."""
        self.screen.say(f"  {text}")

    def promise(self, name: str, ours: str, theirs: str) -> None:
        """Keep for the closing table what came of something that can go wrong."""
        self.promises.append(Promise(name, ours, theirs))

    def compare(
        self, name: str, ours: Measurement, theirs: Measurement, *, waits: bool = True
    ) -> None:
        """Keep a comparison for the closing table and tell of it."""
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
        """Show the closing table: what can be counted on, how long the loop waited, how fast."""
        rows = [promise.row() for promise in self.promises]
        rows += [found.wait_row() for found in self.comparisons if found.waits]
        rows += [found.speed_row() for found in self.comparisons]
        self.screen.heading("What this run showed")
        self.screen.table(HEADERS, rows)

    async def make_cold(self) -> None:
        """Drop the file's pages, look whether they went, and say so once if they did not."""
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
