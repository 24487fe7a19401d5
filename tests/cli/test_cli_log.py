"""``aiommap log``: what it prints about a log, and that it never writes to the log."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys

import anyio
import pytest

from tests.support.internals import main
from tests.support.logs import flip, make, places, segment_path, segments

DATA = (b"first", b"two lines\nof text", b"\xff\x00binary", b"last")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "log"
    anyio.run(make, path, *DATA)
    return path


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main(["log", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_info(folder, run):
    code, out, err = run("info", folder)
    assert (code, err) == (0, "")
    assert "records   4, 1 to 4" in out
    assert "durable   up to 4" in out
    assert "1 file, 64.0 KiB" in out
    code, out, _ = run("info", folder, "--json")
    found = json.loads(out)
    assert (found["command"], found["first"], found["last"]) == ("log info", 1, 4)
    assert [each["path"] for each in found["segments"]] == [str(segment_path(folder))]


def test_cat(folder, run):
    code, out, err = run("cat", folder)
    assert (code, err) == (0, "")
    assert out.splitlines() == ["first", "two lines\\nof text", "\\xff\\x00binary", "last"]
    assert run("cat", folder, "--start", "4")[1] == "last\n"
    lines = [json.loads(line) for line in run("cat", folder, "--json")[1].splitlines()]
    assert [base64.b64decode(line["data"]) for line in lines] == list(DATA)
    assert [line["sequence"] for line in lines] == [1, 2, 3, 4]


def test_verify(folder, run):
    assert run("verify", folder) == (0, "4 good records, 0 damaged\n", "")
    flip(segment_path(folder), places(DATA)[1] + 30)
    flip(segment_path(folder), places(DATA)[3] + 30)
    code, out, err = run("verify", folder)
    assert code == 1
    assert out == "2 good records, 2 damaged\n"
    assert "record 2 at byte" in err.splitlines()[0]
    assert "record 4 at byte" in err.splitlines()[1]
    assert json.loads(run("verify", folder, "--json")[1])["damaged"] == 2


def test_verify_of_many_segments(tmp_path, run):
    folder = tmp_path / "log"
    anyio.run(make, folder, *[bytes(9000)] * 30)
    flip(segments(folder)[1], 5000)
    code, out, err = run("verify", folder)
    assert (code, out) == (1, "29 good records, 1 damaged\n")
    assert str(segments(folder)[1]) in err


@pytest.mark.parametrize("verb", ["info", "cat", "tail", "verify"])
def test_missing_folder_is_told(tmp_path, run, verb):
    code, out, err = run(verb, tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert err.startswith(f"aiommap: {tmp_path}/nothing: No such file or directory")


def test_no_command_writes(folder, run):
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    for verb in ("info", "cat", "verify"):
        assert run(verb, folder)[0] == 0
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert after == before


def test_a_command_is_needed(run):
    code, _, err = run()
    assert code == 2
    assert "COMMAND" in err


@pytest.mark.slow
def test_tail(folder):
    command = [sys.executable, "-m", "aiommap", "log", "tail", folder, "--start", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "last\n"
        anyio.run(make, folder, b"new")
        assert process.stdout.readline() == "new\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 0


@pytest.mark.parametrize("verb", ["cat", "tail"])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_start_beyond_the_end_is_told(folder, run, verb, form):
    code, out, err = run(verb, folder, "--start", 6, *form)
    assert (code, out) == (2, "")
    wanted = f"aiommap: --start 6: the last record of {folder} is 4, so give at most 5\n"
    assert err == wanted


@pytest.mark.parametrize("verb", ["cat", "verify"])
def test_folder_without_a_log_is_told(tmp_path, run, verb):
    code, out, err = run(verb, tmp_path)
    assert (code, out) == (1, "")
    assert err == f"aiommap: {tmp_path}: no writer has opened a log there\n"


def test_verify_goes_on_behind_missing_segments(tmp_path, run):
    folder = tmp_path / "log"
    anyio.run(make, folder, *[bytes(9000)] * 30)
    first, second, *_, last = (int(path.stem) for path in segments(folder))
    segments(folder)[0].unlink()
    code, out, err = run("verify", folder)
    assert (code, out) == (1, f"{31 - second} good records, 0 damaged, {second - first} missing\n")
    assert "the segment of record 1 is missing" in err
    segments(folder)[-1].unlink()
    code, out, err = run("verify", folder, "--json")
    found = json.loads(out)
    assert (code, found["good"], found["damaged"]) == (1, last - second, 0)
    assert found["missing"] == second - first + 31 - last
    assert len(err.splitlines()) == len(found["errors"]) == 2
