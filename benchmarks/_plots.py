"""Plots of one run: throughput, latencies, loop stall over time, and bytes to the device.

Matplotlib draws them in placeholder colours, which we then replace by variables of a style sheet in
each file. So the same picture suits a light page and a dark page, without a background of its own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.rcParams["svg.hashsalt"] = "aiommap"  # the same figures give the same file
mpl.rcParams["svg.fonttype"] = "none"

Run = dict[str, Any]

#: For each placeholder: the variable's name, its colour on a light page, and on a dark page.
COLOURS = {
    "#010001": ("ink", "#333333", "#d8d8e0"),
    "#010002": ("faint", "#d5d5d5", "#4a4d5a"),
    "#010003": ("ours", "#3b4fb8", "#8b9cff"),
    "#010004": ("theirs", "#9a9a9a", "#8a8d98"),
    "#010005": ("second", "#c2571a", "#f0a063"),
    "#010006": ("third", "#2e7d4f", "#74c99a"),
    "#010007": ("fourth", "#8a4fae", "#cb9be6"),
}
INK, FAINT, OURS, THEIRS, SECOND, THIRD, FOURTH = COLOURS

STYLE: Any = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "grid.color": FAINT,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

#: Questions of operations a second: what was done, and what its peers are called.
THROUGHPUT = {
    "warm_read": "4 KiB reads of data in memory",
    "write": "4 KiB writes, not flushed",
    "durable": "durable 128-byte records",
}
PEERS = {
    "bare": "stdlib mmap, bare slice",
    "locked": "aiommap, file locked in memory",
}


def draw(run: Run, folder: Path) -> None:
    """Draw every plot as an SVG file."""
    folder.mkdir(exist_ok=True)
    for plot in (throughput, latency, stall, device_bytes):
        with mpl.rc_context(STYLE):
            drawn = io.StringIO()
            plot(run).savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
        (folder / f"{plot.__name__}.svg").write_text(with_variables(drawn.getvalue()))


def with_variables(svg: str) -> str:
    """Replace the placeholders by variables, and add a style sheet that gives these colours."""
    sheets = []
    for column, rule in ((1, "{}"), (2, "@media (prefers-color-scheme: dark) {{ {} }}")):
        values = "; ".join(f"--{names[0]}: {names[column]}" for names in COLOURS.values())
        sheets.append(rule.format(f":root {{ {values} }}"))
    for stand_in, (name, light, _) in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name}, {light})")
    head, tag, rest = svg.partition("<defs>\n")
    return f"{head}<style>{' '.join(sheets)}</style>\n {tag}{rest}"


def throughput(run: Run) -> Figure:
    """Draw operations a second of us and our peers, one group a question and number of tasks."""
    groups: dict[str, dict[str, float]] = {}
    for row in run["figures"]:
        if row["question"] in THROUGHPUT and row["unit"].endswith("/s"):
            tasks, _, who = row["label"].partition(" tasks: ")
            noun = "task" if tasks.split()[-1] == "1" else "tasks"
            title = f"{THROUGHPUT[row['question']]}, {tasks} {noun}"
            groups.setdefault(title, {})[PEERS.get(who, who)] = row["value"]
    bars = [len(rates) for rates in groups.values()]
    figure = Figure(figsize=(8, 0.9 * len(groups) + 0.26 * sum(bars)), layout="constrained")
    for axes, (title, rates) in zip(
        figure.subplots(len(groups), sharex=True, height_ratios=bars), groups.items(), strict=True
    ):
        colours = [OURS if who.startswith("aiommap") else THEIRS for who in rates]
        drawn = axes.barh(list(rates), list(rates.values()), color=colours)
        axes.bar_label(drawn, [f"{rate:,.0f}" for rate in rates.values()], padding=4, fontsize=9)
        axes.set(xscale="log", title=title)
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xticks([1e4, 1e5, 1e6], ["10,000", "100,000", "1,000,000"])
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    figure.supxlabel("operations a second (logarithmic)", fontsize=10)
    return figure


def latency(run: Run) -> Figure:
    """Draw what share of operations took longer than a time."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    colours = iter((THIRD, OURS, SECOND, THEIRS, FOURTH))
    for series in run["series"]:
        if series["question"] == "latency":
            shares, microseconds = zip(*series["points"], strict=True)
            longer = [1 - share for share in shares]
            colour = next(colours)
            marks = [_nearest(longer, share) for share in (0.5, 0.01)]
            values = ", ".join(_duration(microseconds[at] / 1e3) for at in marks)
            label = f"{series['label']}: {values}"
            axes.plot(microseconds, longer, "-o", color=colour, label=label, markevery=marks, ms=4)
    axes.set(xscale="log", yscale="log", xlabel="how long an operation took")
    axes.set_yticks([0.5, 0.1, 0.01, 0.001], ["1 in 2", "1 in 10", "1 in 100", "1 in 1,000"])
    axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set_xticks([1, 10, 100, 1e3, 1e4], ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms"])
    axes.set_title("how many operations took longer, 64 tasks; in figures: 1 in 2, 1 in 100")
    axes.grid(visible=True)
    axes.legend(loc="lower left", fontsize=9)
    return figure


def _nearest(values: Sequence[float], wanted: float) -> int:
    return min(range(len(values)), key=lambda index: abs(values[index] - wanted))


def stall(run: Run) -> Figure:
    """Draw how late a heartbeat of 1 ms was, over the time of each work."""
    works: dict[str, dict[str, list[list[float]]]] = {}
    for series in run["series"]:
        if series["question"] == "stall":
            work, _, who = series["label"].partition(": ")
            works.setdefault(work, {})[who] = series["points"]
    figure = Figure(figsize=(8, 1.9 * len(works)), layout="constrained")
    for axes, (work, both) in zip(figure.subplots(len(works)), works.items(), strict=True):
        lasted = max(points[-1][0] for points in both.values())
        for (who, points), colour in zip(both.items(), (OURS, SECOND), strict=True):
            seconds, late = steps(points)
            axes.step(seconds, late, where="pre", color=colour, label=who)
            worst = max(late)
            end = seconds[len(late) - 1 - late[::-1].index(worst)]
            start = max(end - worst / 1e3, 0)
            axes.annotate(
                f"{who}: {_duration(worst)}",
                (start, worst),
                xytext=(2, 4),
                textcoords="offset points",
                ha="left" if start < lasted / 2 else "right",
                fontsize=9,
                color=colour,
            )
        axes.set(yscale="log", ylim=(0.05, 3000), xlim=(0, None))
        axes.set_title(f"{work}: how late a tick of the loop came")
        axes.set_yticks([0.1, 1, 10, 100], ["0.1 ms", "1 ms", "10 ms", "100 ms"])
        axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.grid(visible=True, axis="y")
    figure.supxlabel("seconds", fontsize=10)
    return figure


def steps(points: list[list[float]]) -> tuple[list[float], list[float]]:
    """Return times and delays of a heartbeat, from the time at which the first tick was due.

    A late tick ends a time in which the loop ran nothing else: a step as long as the delay.
    """
    first = points[0][0] - points[0][1] / 1e3
    floor = 0.06  # a logarithmic axis has no place for a delay of 0
    seconds = [0.0, *(at - first for at, _ in points)]
    late = [points[0][1], *(delay for _, delay in points)]
    return seconds, [max(delay, floor) for delay in late]


def device_bytes(run: Run) -> Figure:
    """Draw what a durable record at random costs the device, one group a file system."""
    groups: dict[str, dict[str, float]] = {}
    for row in run["figures"]:
        if row["question"] == "device_bytes" and row["unit"] == "KiB a record":
            place, _, form = row["label"].partition(": ")
            groups.setdefault(place, {})[form] = row["value"]
    bars = [len(forms) for forms in groups.values()]
    figure = Figure(figsize=(8, 0.9 * len(groups) + 0.26 * sum(bars)), layout="constrained")
    for axes, (title, forms) in zip(
        figure.subplots(len(groups), height_ratios=bars), groups.items(), strict=True
    ):
        colours = [THEIRS if form.startswith("pwrite") else OURS for form in forms]
        drawn = axes.barh(list(forms), list(forms.values()), color=colours)
        axes.bar_label(drawn, [f"{kib:.1f}" for kib in forms.values()], padding=4, fontsize=9)
        axes.set(title=title)
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.margins(x=0.12)
    figure.supxlabel("KiB written to the device for each record", fontsize=10)
    return figure


def _duration(milliseconds: float) -> str:
    if milliseconds < 1:
        return f"{milliseconds * 1e3:.3g} µs"
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
