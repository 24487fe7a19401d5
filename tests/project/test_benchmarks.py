"""README shows the figures of the run that docs/benchmarks.json holds, and what it was run on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import _table
from benchmarks.__main__ import QUESTIONS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RUN = json.loads((ROOT / "docs" / "benchmarks.json").read_text())


def test_readme_table_is_the_recorded_run():
    assert _table.put_into(README, _table.table(RUN)) == README


def test_recorded_run_is_complete():
    assert {row["question"] for row in RUN["figures"]} == set(QUESTIONS)
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
