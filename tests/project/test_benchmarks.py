"""README shows the figures of the run in docs/benchmarks.json, and the machine of that run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import _table
from benchmarks.__main__ import QUESTIONS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RUN = json.loads((ROOT / "docs" / "benchmarks.json").read_text())

#: Questions that are newer than the recorded run.
UNRECORDED: set[str] = set()


def test_readme_table_is_the_recorded_run():
    assert _table.put_into(README, _table.table(RUN)) == README


def test_home_table_is_the_recorded_run():
    page = (ROOT / "docs" / "index.md").read_text()
    assert _table.put_into(page, _table.home(RUN)) == page


def test_recorded_run_is_complete():
    assert {row["question"] for row in RUN["figures"]} == set(QUESTIONS) - UNRECORDED
    assert not RUN["smoke"]


def test_recorded_run_names_its_machine():
    machine = RUN["machine"]
    assert machine.keys() >= {"system", "processor", "cores", "file_system", "python", "date"}


def test_missing_figure_is_an_error():
    with pytest.raises(KeyError, match="1 tasks: aiommap / bare slice"):
        _table.table(RUN | {"figures": []})


def test_questions_and_files_agree():
    files = {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert files == set(QUESTIONS)


@pytest.mark.slow
def test_plots_suit_light_and_dark_pages():
    plots = pytest.importorskip(
        "benchmarks._plots", reason="needs matplotlib", exc_type=ImportError
    )
    for plot in ("throughput", "latency", "stall"):
        drawn = (ROOT / "docs" / "plots" / f"{plot}.svg").read_text()
        assert "@media (prefers-color-scheme: dark)" in drawn
        assert [stand_in for stand_in in plots.COLOURS if stand_in in drawn] == []


def test_late_tick_is_a_step_of_its_length():
    plots = pytest.importorskip(
        "benchmarks._plots", reason="needs matplotlib", exc_type=ImportError
    )
    seconds, late = plots.steps([[0.0, 400.0], [0.5, 100.0]])
    assert seconds == pytest.approx([0.0, 0.4, 0.9])
    assert late == [400.0, 400.0, 100.0]
