"""Write the tables of README and of the site's first page from the figures of one whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ._machine import in_words

BEGIN = "<!-- figures: written by `python -m benchmarks.report` -->\n"
END = "<!-- end of figures -->\n"

Figures = dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure and how it is written."""

    question: str
    label: str
    text: str

    def write(self, figures: Figures) -> str:
        """Fill the figure in; a figure that the run lacks raises KeyError."""
        return self.text.format(_rounded(figures[self.question, self.label]))


def _rounded(value: float) -> str:
    """Round to about two digits, as a reader would say the number."""
    if value >= 1e6:
        return f"{value / 1e6:.1f} million"
    if value >= 1000:
        return f"{round(value, -3):,.0f}" if value >= 10_000 else f"{round(value, -2):,.0f}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


#: The work that was measured, and the cells of both columns.
Row = tuple[str, list[Cell], list[Cell]]


def _rates(question: str, tasks: int, *parts: tuple[str, str]) -> list[Cell]:
    return [Cell(question, f"{tasks} tasks: aiommap / {peer}", text) for peer, text in parts]


def _stall(work: str, size: str) -> Row:
    return (
        f"worst loop stall, {work} of {size}",
        [Cell("stall", f"{work}: aiommap", "{} ms")],
        [Cell("stall", f"{work}: stdlib mmap in a thread", "{} ms (stdlib mmap in a thread)")],
    )


def _reads(tasks: int) -> Row:
    noun = "task" if tasks == 1 else "tasks"
    return (
        f"warm 4 KiB reads, {tasks} {noun}",
        _rates("warm_read", tasks, ("bare slice", "{} of a bare `mm[a:b]`")),
        _rates("warm_read", tasks, ("aiofiles", "{} × aiofiles"), ("aiofile", "{} × aiofile")),
    )


def _records(tasks: int, *, peers: int = 3) -> Row:
    noun = "task" if tasks == 1 else "tasks"
    named = [
        ("thread", "{} × `pwrite` + `fdatasync` in a thread"),
        ("aiofiles", "{} × aiofiles"),
        ("aiofile", "{} × aiofile"),
    ]
    return (
        f"durable 128-byte records, {tasks} {noun}",
        [Cell("durable", f"{tasks} tasks: aiommap", "{} a second")],
        _rates("durable", tasks, *named[:peers]),
    )


def _device_bytes() -> Row:
    label = "ext4, 128 B at random: "
    return (
        "bytes to the device for such a record at random (ext4)",
        [Cell("device_bytes", label + "write + wait_durable", "{} KiB")],
        [Cell("device_bytes", label + "pwrite + fdatasync", "{} KiB (`pwrite` + `fdatasync`)")],
    )


#: The rows of README's table: (what was measured, ours, beside).
ROWS: tuple[Row, ...] = (
    _reads(1),
    _reads(64),
    (
        "4 KiB writes, 64 tasks",
        _rates("write", 64, ("bare store", "{} of a bare store")),
        _rates("write", 64, ("aiofiles", "{} × aiofiles")),
    ),
    _records(1),
    _records(64),
    _device_bytes(),
    _stall("cold read", "512 MiB"),
    _stall("flush", "256 MiB"),
    (
        "a change by another process, median",
        [Cell("watch", "external write to subscriber, p50", "{} ms")],
        [Cell("watch", "watchfiles.awatch, p50", "{} ms (`watchfiles.awatch`)")],
    ),
    (
        "`fetch_add` on a shared counter",
        [Cell("atomics", "fetch_add: aiommap", "{} a second")],
        [
            Cell("atomics", "aiommap / atomics", "{} × atomics"),
            Cell("atomics", "aiommap / multiprocessing.Value", "{} × `multiprocessing.Value`"),
        ],
    ),
    (
        "growing to 1 GiB by 64 KiB stores",
        [Cell("growth", "aiommap", "{} MiB/s")],
        [
            Cell("growth", "aiommap / file.write", "{} × `file.write`"),
            Cell("growth", "aiommap / remap for each append", "{} × a remap for each"),
        ],
    ),
)


#: The first rows on the site's first page: promises that others do not make. Then comes the speed.
HOME = """\
| another process truncates the file | `MappingFaultError`; the process lives | \
the process is killed by SIGBUS (stdlib mmap) |
| it cuts off what is not flushed yet | the flush raises `FlushError` | \
the flush reports success (stdlib mmap) |"""
HOME_ROWS = (
    _stall("cold read", "512 MiB"),
    _stall("flush", "256 MiB"),
    _records(64, peers=2),
    _reads(64),
)


def table(run: dict[str, object]) -> str:
    """Write the section of README from one run."""
    return _written(run, "", ROWS)


def home(run: dict[str, object]) -> str:
    """Write the section of the site's first page from one run."""
    return _written(run, HOME, HOME_ROWS)


def _written(run: dict[str, object], first: str, rows: Sequence[Row]) -> str:
    found = run["figures"]
    assert isinstance(found, list)
    figures: Figures = {(row["question"], row["label"]): row["value"] for row in found}
    machine = run["machine"]
    assert isinstance(machine, dict)
    lines = ["| | aiommap | beside |", "|---|---|---|", *first.splitlines()]
    for what, *columns in rows:
        ours, beside = (", ".join(cell.write(figures) for cell in cells) for cells in columns)
        lines.append(f"| {what} | {ours} | {beside} |")
    lines += [
        "",
        f"Measured on {in_words(machine)}.",
        "`python -m benchmarks` (extra `bench`) measures again.",
    ]
    return "\n".join(lines) + "\n"


def put_into(page: str, section: str) -> str:
    """Replace the section between the marks of a page."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + section + END + after
