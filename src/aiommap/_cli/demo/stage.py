"""What the parts of the demo share: the file, the screen, and the comparisons they collect."""

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


@dataclass(frozen=True, slots=True)
class Comparison:
    """One piece of work done twice in one run: through aiommap, and by stdlib mmap in a thread.

    Attributes:
        name: what was done.
        ours: how aiommap did.
        theirs: how stdlib mmap in a thread did.
    """

    name: str
    ours: Measurement
    theirs: Measurement

    def row(self) -> tuple[str, ...]:
        """Return the cells of the closing table."""
        return (
            self.name,
            _speed(self.ours),
            _speed(self.theirs),
            f"{self.theirs.seconds_each / self.ours.seconds_each:.1f}x",
            format_seconds(self.ours.worst_gap),
            format_seconds(self.theirs.worst_gap),
        )

    def as_json(self) -> dict[str, object]:
        """Return both measurements under their names."""
        return {
            "name": self.name,
            "aiommap": self.ours.as_json(),
            "stdlib_mmap_in_thread": self.theirs.as_json(),
        }


HEADERS = ("", "aiommap", "mmap", "faster", "stall", "mmap stall")


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
        comparisons: what was measured so far.
        never_cold: set once pages could not be dropped.
    """

    screen: Screen
    path: str
    span: int
    tasks: int
    seconds: float
    comparisons: list[Comparison] = field(default_factory=list)
    never_cold: bool = False

    def compare(self, name: str, ours: Measurement, theirs: Measurement) -> None:
        """Keep a comparison for the closing table and tell of it."""
        self.comparisons.append(Comparison(name, ours, theirs))
        for who, measured in (("aiommap", ours), ("stdlib mmap in a thread", theirs)):
            latency = (
                f", p50 {format_seconds(measured.percentile(0.5))}"
                f", p99 {format_seconds(measured.percentile(0.99))}"
                if measured.latencies
                else f" in {format_seconds(measured.seconds)}"
            )
            self.screen.line(
                f"  {who:<24}{_speed(measured)}{latency}, "
                f"worst stall of the loop {format_seconds(measured.worst_gap)}"
            )

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
            self.screen.line((note, "yellow"))
