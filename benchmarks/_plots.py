"""Plots of one run: throughput, the distribution of latencies, loop stall over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.rcParams["svg.hashsalt"] = "aiommap"  # the same figures give the same file
mpl.rcParams["svg.fonttype"] = "none"

Run = dict[str, Any]


def draw(run: Run, folder: Path) -> None:
    """Draw every plot as an SVG file."""
    folder.mkdir(exist_ok=True)
    for name, plot in (
        ("throughput", throughput(run)),
        ("latency", latency(run)),
        ("stall", stall(run)),
    ):
        plot.savefig(folder / f"{name}.svg", metadata={"Date": None})


def throughput(run: Run) -> Figure:
    """Draw operations a second of us and our peers, one group a question and number of tasks."""
    groups: dict[str, dict[str, float]] = {}
    for row in run["figures"]:
        if row["unit"].endswith("/s") and " tasks: " in row["label"]:
            tasks, _, who = row["label"].partition(" tasks: ")
            groups.setdefault(f"{row['question']}, {tasks} tasks", {})[who] = row["value"]
    figure = Figure(figsize=(8, 1.1 + 1.3 * len(groups)), layout="constrained")
    for axes, (title, rates) in zip(
        figure.subplots(len(groups), sharex=True), groups.items(), strict=True
    ):
        colours = ["tab:blue" if who in ("aiommap", "locked") else "tab:gray" for who in rates]
        axes.barh(list(rates), list(rates.values()), color=colours)
        axes.set(xscale="log", title=title)
        axes.invert_yaxis()
    figure.supxlabel("operations a second (logarithmic)")
    return figure


def latency(run: Run) -> Figure:
    """Draw what share of operations took longer than a time."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for series in run["series"]:
        if series["question"] == "latency":
            shares, microseconds = zip(*series["points"], strict=True)
            axes.plot(microseconds, [1 - share for share in shares], label=series["label"])
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="microseconds",
        ylabel="share of operations that took longer",
    )
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    return figure


def stall(run: Run) -> Figure:
    """Draw how late a heartbeat of 1 ms was, over the time of each work."""
    works: dict[str, list[dict[str, Any]]] = {}
    for series in run["series"]:
        if series["question"] == "stall":
            works.setdefault(series["label"].partition(":")[0], []).append(series)
    figure = Figure(figsize=(8, 2 * len(works)), layout="constrained")
    for axes, (work, both) in zip(figure.subplots(len(works)), works.items(), strict=True):
        for series in both:
            seconds, late = zip(*series["points"], strict=True)
            axes.plot(seconds, late, ".-", label=series["label"].partition(": ")[2])
        axes.set(title=work, yscale="symlog", ylabel="ms late")
        axes.legend(loc="upper right")
    figure.supxlabel("seconds")
    return figure
