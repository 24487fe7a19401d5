"""``python -m benchmarks.report RUN.json``: write README's table and the plots of one whole run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ._plots import draw
from ._table import home, put_into, table

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write the results of a run of all questions into README and docs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("run", type=Path, help="what `python -m benchmarks --json` wrote")
    options = parser.parse_args()
    text = options.run.read_text()
    run = json.loads(text)
    for page, section in (("README.md", table(run)), ("docs/index.md", home(run))):
        path = ROOT / page
        path.write_text(put_into(path.read_text(), section))
    (ROOT / "docs" / "benchmarks.json").write_text(text)
    draw(run, ROOT / "docs" / "plots")


if __name__ == "__main__":
    main()
