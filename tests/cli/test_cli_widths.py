"""What the commands print in terminals of 40, 80 and 200 columns, compared with snapshots.

``python -m tests.cli.test_cli_widths`` writes the snapshots again.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

import aiommap
from tests.support.internals import (
    Measurement,
    Stage,
    choose_screen,
    columns_of,
    command,
    fold,
    main,
    prewarm_module,
    shorten,
    wrap,
)

pytest.importorskip("rich")

SNAPSHOTS = Path(__file__).parent / "snapshots"
WIDTHS = (40, 80, 200)
COMMANDS = ("demo", "info", "residency", "prewarm", "bench", "watch", "cache", "log", "completion")
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
USAGE = re.compile(r"^usage: .*?\n\n", re.DOTALL | re.MULTILINE)
LONG_NAME = "a-folder-with-a-long-name/and-a-file-in-it-whose-name-is-long-as-well.bin"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@contextlib.contextmanager
def terminal(columns):
    """Have the commands of this process write to a terminal; yield what they write."""
    environment = {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    shown = Terminal()
    with (
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stdout(shown),
    ):
        os.environ.pop("NO_COLOR", None)
        yield shown


def text(shown):
    """Return what can be seen: no colours, and no frames of a bar that were drawn over.

    The usage of the commands is left out, too: each version of Python breaks its lines in its own
    way.
    """
    visible = (line.rpartition("\r")[2] for line in shown.getvalue().split("\n"))
    return USAGE.sub("", "\n".join(ESCAPE.sub("", line) for line in visible))


def show_help():
    main([])
    for name in COMMANDS:
        print(f"$ aiommap {name} --help")
        main([name, "--help"])


def show_residency():
    Path(LONG_NAME).parent.mkdir()
    for name, pages in (("model.bin", 64), (LONG_NAME, 3), ("empty", 0)):
        Path(name).write_bytes(bytes(pages * aiommap.PAGE_SIZE))
    assert main(["residency", "model.bin", LONG_NAME, "empty"]) == 0


def show_prewarm():
    for name, pages in (("model.bin", 2048), ("empty", 0)):
        Path(name).write_bytes(bytes(pages * aiommap.PAGE_SIZE))
    clock = SimpleNamespace(perf_counter=iter([0.0, 0.25, 0.0, 0.0]).__next__)
    with mock.patch.object(prewarm_module, "time", clock):
        assert main(["prewarm", "model.bin", "empty"]) == 0


def measured(seconds, wait, *, counted=False):
    latencies = [seconds / 1000] * 1000 if counted else ()
    return Measurement(1000, 256 << 20, seconds, 2 * wait, wait, latencies, counted)


def show_a_demo():
    """Show the demo with made-up figures: those of a run would never be the same."""
    idle = SimpleNamespace(worst_gap=0.0023, worst_wait=0.0011)
    stage = Stage(choose_screen(as_json=False), "demo.bin", 256 << 20, 64, 2.0)
    command._introduce(stage.screen, "on a file of 256.0 MiB in a temporary folder")
    stage.screen.heading(
        "64 tasks write records of 4.0 KiB; each is durable when its write returns"
    )
    stage.compare("durable writes", measured(0.07, 9e-4, counted=True), measured(0.7, 0.08))
    stage.compare("cold read", measured(0.125, 0.0019), measured(0.25, 0.231))
    stage.promise("truncated while it is read", "MappingFaultError", "killed by SIGBUS")
    command._close(stage, idle)


VIEWS = {
    "help": show_help,
    "residency": show_residency,
    "prewarm": show_prewarm,
    "demo": show_a_demo,
}


def shown_by(view, columns):
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        terminal(columns) as shown,
    ):
        VIEWS[view]()
    return text(shown)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("view", VIEWS)
def test_view_is_as_its_snapshot(view, columns):
    snapshot = SNAPSHOTS / f"{view}-{columns}.txt"
    assert shown_by(view, columns) == snapshot.read_text(), (
        f"{snapshot.name} differs: look at it, then run `python -m tests.cli.test_cli_widths`"
    )


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("view", VIEWS)
def test_snapshot_fits_its_terminal(view, columns):
    """A single word may be longer: a path is never broken, so that it can be copied."""
    for line in (SNAPSHOTS / f"{view}-{columns}.txt").read_text().splitlines():
        assert columns_of(line) <= columns or len(line.split()) == 1, line


@pytest.mark.slow
@pytest.mark.parametrize("columns", WIDTHS)
def test_demo_fits_its_terminal(columns, tmp_path):
    options = ("--size", "8M", "--seconds", "0.05", "--tasks", "4", "--dir", str(tmp_path))
    with terminal(columns) as shown:
        assert main(["demo", *options]) == 0
    lines = text(shown).splitlines()
    assert lines[0].startswith("aiommap: memory-mapped files")
    assert "docs/tutorial.md" in "".join(lines[-4:])
    assert [line for line in lines if columns_of(line) > columns] == []


def test_pipe_gets_prose_in_80_columns(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    assert main(["demo", str(path), "--seconds", "0.05", "--tasks", "2"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert [line for line in out.splitlines() if len(line) > 80 and str(path) not in line] == []


def test_bare_command_lists_the_commands(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert [name for name in COMMANDS if f"\n  {name} " not in out] == []
    assert err == ""


@pytest.mark.parametrize(
    ("line", "columns", "parts"),
    [
        ("", 10, [""]),
        ("a  b   c", 10, ["a  b   c"]),
        ("a  bb   cc  dd", 10, ["a  bb   cc", "dd"]),
        ("word-that-is-long and more", 10, ["word-that-is-long", "and", "more"]),
        (
            "it took 1.25 ms and 100.0 % of 4 KiB.",
            10,
            ["it took", "1.25 ms", "and", "100.0 %", "of", "4 KiB."],
        ),
        ("äöü 漢字", 8, ["äöü 漢字"]),
        ("äöü 漢字", 7, ["äöü", "漢字"]),
    ],
)
def test_fold(line, columns, parts):
    assert fold(line, columns, indent=4) == parts


@pytest.mark.parametrize(
    ("name", "columns", "shown"),
    [
        ("name", 4, "name"),
        ("long/name", 7, "...name"),
        ("漢字漢字", 7, "...漢字"),
        ("name", 3, "..."),
    ],
)
def test_shorten_keeps_the_end(name, columns, shown):
    assert shorten(name, columns) == shown


def test_wrap_keeps_its_depth():
    assert wrap("  one two three", 9) == "  one two\n  three"


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for view in VIEWS:
        for columns in WIDTHS:
            (SNAPSHOTS / f"{view}-{columns}.txt").write_text(shown_by(view, columns))
    sys.exit()
