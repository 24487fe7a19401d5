"""Every verb while a resource is missing, on every loop; want_matrix.py does the measuring.

A verb does what it should, or its error names the file. Once the want is over, the file works, the
sizes of mapping and file agree, and the file can be closed without leaving anything behind. Refused
system calls, verb by verb, are in test_sandbox.py.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from aiommap import PAGE_SIZE as PAGE
from tests.support.disks import disk_with, must
from tests.support.strict import PYTHON

MATRIX = Path(__file__).with_name("want_matrix.py")
WANTS = (
    "no_descriptor",
    "no_thread",
    "no_import",
    "mapping_limit",
    "renamed",
    "frozen",
    "copied_up",
)
READS, WRITES = 17, 16
#: How many verbs cannot be tried in each want.
IMPOSSIBLE = {"frozen": 2, "mapping_limit": 1, "copied_up": WRITES}
#: The verbs that each want may refuse, with a part of the error; all others have to work.
REFUSED = {
    "no_descriptor": dict.fromkeys(("huge_page_bytes", "follow", "reopen"), "Too many open files"),
    "mapping_limit": {"locked": "vm.max_map_count"},
    "renamed": dict.fromkeys(("follow", "reopen"), "No such file"),
    "copied_up": dict.fromkeys(("view_read", "prewarm", "residency", "locked"), "call reopen()"),
}


@pytest.fixture
def folder(want, tmp_path):
    with ExitStack() as stack:
        if want == "frozen":
            yield prepared(stack.enter_context(disk_with("full_ext4", tmp_path)))
        elif want == "copied_up":
            yield overlay(stack, tmp_path)
        else:
            (tmp_path / "disk").mkdir()
            yield tmp_path / "disk"


def prepared(folder):
    """Remount so that reads write nothing while it is frozen, not even the access time."""
    must("mount", "-o", "remount,noatime", folder)
    return folder


def overlay(stack, tmp_path):
    below, parts = tmp_path / "below", [tmp_path / name for name in ("upper", "work", "disk")]
    must("mkdir", below, *parts)
    # Neither layer may be an overlay itself, but the folders of containers are.
    must("mount", "-t", "tmpfs", "tmpfs", below)
    stack.callback(must, "umount", "--lazy", below)
    lower, upper, work = (below / name for name in ("lower", "upper", "work"))
    must("mkdir", lower, upper, work)
    for name in verbs_that_read():
        (lower / name).write_bytes(b"o" * 16 * PAGE)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    must("mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "disk")
    stack.callback(must, "umount", "--lazy", tmp_path / "disk")
    return tmp_path / "disk"


def verbs_that_read():
    from tests.faults import want_matrix

    return list(want_matrix.READS)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("want", WANTS)
def test_every_verb_in_want_works_or_tells(folder, want, backend):
    done = subprocess.run(
        [*PYTHON, MATRIX, folder, want, backend], capture_output=True, text=True, timeout=170
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {results[-1:]}: {done.stderr}"
    assert len(results) == READS + WRITES - IMPOSSIBLE.get(want, 0)
    for result in results:
        assert result["named"], result
        assert (result["after"], result["left"]) == (None, []), result
        if result["error"]:
            assert REFUSED.get(want, {}).get(result["verb"], "") in result["error"], result
            assert result["verb"] in REFUSED.get(want, {}), result
