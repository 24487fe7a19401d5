"""The command line: what it prints, where it prints it, and the code it ends with."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aiommap
from tests.support.fork_server import run_code
from tests.support.internals import cache_state, drop_pages, main

PAGE = aiommap.PAGE_SIZE
ROOT = Path(__file__).parents[2]
HELP_FILE = ROOT / "docs" / "cli_help.txt"
COMMANDS = ("info", "residency", "prewarm", "bench", "demo")
ALL_COMMANDS = (*COMMANDS, "watch", "cache", "log", "completion")
SHORT = ("--seconds", "0.05", "--tasks", "2")
CACHE_COMMANDS = [("cache", name) for name in ("info", "list", "clear", "verify")]
LOG_COMMANDS = [("log", name) for name in ("info", "cat", "tail", "verify")]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A way to run the command line in this process; it returns code, output and errors."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of 40 and a half pages, written back to the disk."""
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(40 * PAGE + PAGE // 2))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    path = tmp_path / "empty.bin"
    path.touch()
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "aiommap", *map(str, arguments)]


def spawn(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with pipes for its output."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=150, check=False, **options
    )


def on_terminal(*arguments: str | Path, code: str | None = None) -> tuple[int, str]:
    """Run the command line on a pseudo-terminal of 140 columns; return code and output."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
    environment.pop("NO_COLOR", None)
    line = command(*arguments) if code is None else [sys.executable, "-c", code]
    with subprocess.Popen(line, stdin=theirs, stdout=theirs, env=environment) as process:
        os.close(theirs)
        output = b""
        # On Linux the last read of a pseudo-terminal fails with EIO instead of returning nothing.
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 1 << 16):
                output += chunk
        os.close(ours)
    return process.returncode, output.decode()


def make_cold(path: Path) -> None:
    """Drop a file's pages, or skip the test where its file system keeps them in memory."""
    drop_pages(str(path))
    state = cache_state(str(path))
    if state is None:
        pytest.skip("the kernel has no cachestat to tell whether pages were dropped")
    if state.cached:
        pytest.skip(f"{state.cached} pages stayed in memory: the file system keeps them")


def render_help() -> str:
    """Return the help of the program and of every command, as docs/cli_help.txt holds it."""
    parts = []
    for arguments in ((), *((name,) for name in ALL_COMMANDS), *CACHE_COMMANDS, *LOG_COMMANDS):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert main([*arguments, "--help"]) == 0
        parts.append(f"$ {' '.join(('aiommap', *arguments, '--help'))}\n{output.getvalue()}")
    return "\n".join(parts)


class TestHelp:
    def test_help_matches_snapshot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("NO_COLOR", "1")
        assert render_help() == HELP_FILE.read_text(), (
            "help and docs/cli_help.txt differ: run `python -m tests.cli.test_cli`"
        )

    @pytest.mark.parametrize("code", ["0", "1", "2", "130", "141"])
    def test_exit_codes_are_documented(self, run: Run, code: str) -> None:
        for arguments in ((), *((name,) for name in (*COMMANDS, "completion"))):
            assert f"\n  {code:<4}" in run(*arguments, "--help")[1]
        # A watch goes on until it is stopped, so being stopped is no failure.
        assert (f"\n  {code:<4}" in run("watch", "--help")[1]) == (code != "130")
        assert f"| {code} |" in (ROOT / "docs" / "cli.md").read_text()

    def test_version(self, run: Run) -> None:
        code, out, _ = run("--version")
        assert code == 0
        assert out.startswith("aiommap ")


class TestBadInput:
    @pytest.mark.parametrize(
        "arguments",
        [
            pytest.param(["nope"], id="unknown command"),
            pytest.param(["--json"], id="option without command"),
            pytest.param(["info"], id="no file"),
            pytest.param(["info", "--nope", "x"], id="unknown option"),
            pytest.param(["residency", "--width", "0", "x"], id="width 0"),
            pytest.param(["residency", "--width", "many", "x"], id="width in letters"),
            pytest.param(["bench", "x", "--tasks", "0"], id="no tasks"),
            pytest.param(["bench", "x", "--tasks", "-1"], id="negative tasks"),
            pytest.param(["bench", "x", "--tasks", "513"], id="too many tasks"),
            pytest.param(["bench", "x", "--tasks", "١"], id="foreign digit"),  # noqa: RUF001
            pytest.param(["bench", "x", "--block", "0"], id="empty block"),
            pytest.param(["bench", "x", "--block", "4Q"], id="unknown unit"),
            pytest.param(["bench", "x", "--seconds", "0"], id="no time"),
            pytest.param(["bench", "x", "--seconds", "nan"], id="nan"),
            pytest.param(["bench", "x", "--seconds", "inf"], id="infinity"),
            pytest.param(["bench", "x", "y"], id="two files"),
            pytest.param(["watch"], id="nothing to watch"),
            pytest.param(["watch", "x", "."], id="watch a folder"),
            *(pytest.param([name, ""], id=f"{name} empty path") for name in (*COMMANDS, "watch")),
            pytest.param(["demo", "--size", "1K"], id="demo too small"),
            pytest.param(["demo", "--dir", "/nonexistent"], id="no such folder"),
            pytest.param(["demo", "x", "--dir", "."], id="folder beside file"),
            pytest.param(["completion"], id="no shell"),
            pytest.param(["completion", "csh"], id="unknown shell"),
        ],
    )
    def test_usage_error_is_one_line_and_code_2(self, run: Run, arguments: list[str]) -> None:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("aiommap: ")
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            (name, kind)
            for name in COMMANDS
            for kind in ("missing", "folder", "fifo", "device")
            if (name, kind) != ("residency", "folder")
        ],
    )
    def test_unusable_file_is_one_line_and_code_1(
        self, run: Run, tmp_path: Path, name: str, kind: str
    ) -> None:
        path = {"device": Path("/dev/null")}.get(kind, tmp_path / kind)
        if kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        code, _, err = run(name, path)
        assert code == 1
        assert err.startswith("aiommap: ")
        assert str(path) in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize("name", ["info", "residency", "prewarm"])
    def test_good_file_beside_a_bad_one(
        self, run: Run, tmp_path: Path, data: Path, name: str
    ) -> None:
        missing = tmp_path / "missing"
        code, out, err = run(name, missing, data)
        assert code == 1
        assert data.name in out
        assert err == f"aiommap: {missing}: No such file or directory\n"
        assert name != "residency" or out.endswith("  total of 1 file, 1 could not be used\n")
        document = json.loads(run(name, missing, data, "--json")[1])
        assert [entry["path"] for entry in document["files"]] == [str(data)]
        assert document["errors"] == [{"path": str(missing), "error": "No such file or directory"}]

    @pytest.mark.parametrize("name", ["bench", "demo"])
    def test_empty_file_cannot_be_measured(self, run: Run, empty: Path, name: str) -> None:
        code, _, err = run(name, empty)
        assert code == 1
        assert err == f"aiommap: {empty}: the file is empty: there is nothing to read\n"

    @pytest.mark.parametrize("name", ["info", "residency", "prewarm", "bench", "demo"])
    def test_path_is_named_once_as_given(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, _, err = run(name, "no-such-file")
        assert (code, err) == (1, "aiommap: no-such-file: No such file or directory\n")
        if name != "residency":  # which searches folders
            _, _, err = run(name, ".")
            assert err.startswith("aiommap: .: cannot be mapped: it is a directory")
            assert str(tmp_path) not in err

    def test_unknown_option_refers_to_its_help(self, run: Run) -> None:
        code, _, err = run("residency", "file", "--widht", "3")
        assert code == 2
        assert "--widht 3 (see aiommap residency --help)" in err

    def test_process_writes_no_traceback(self, tmp_path: Path) -> None:
        result = spawn("info", tmp_path / "missing")
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1


class TestInfo:
    def test_info_tells_size_and_pages(self, run: Run, data: Path) -> None:
        code, out, err = run("info", data)
        assert (code, err) == (0, "")
        assert str(data) in out
        assert f"{data.stat().st_size:,} bytes" in out
        assert f"41 of {PAGE} bytes" in out

    def test_info_as_json(self, run: Run, data: Path) -> None:
        document = json.loads(run("info", data, "--json")[1])
        [facts] = document["files"]
        assert document["command"] == "info"
        assert facts["size"] == data.stat().st_size
        assert facts["pages"] == 41
        assert facts["page_size"] == PAGE
        assert facts["residency_visible"] is True
        assert facts["file_system"] != "unknown"
        assert facts["inline_reads"] is True

    def test_info_of_file_in_memory_names_tmpfs(self, run: Run) -> None:
        shm = Path("/dev/shm")
        if not os.access(shm, os.W_OK):
            pytest.skip("no writable /dev/shm")
        path = shm / f"aiommap-test-{os.getpid()}"
        try:
            path.write_bytes(b"x" * PAGE)
            [facts] = json.loads(run("info", path, "--json")[1])["files"]
        finally:
            path.unlink()
        assert facts["file_system"] == "tmpfs"
        assert facts["inline_reads"] is True
        assert facts["resident_pages"] == 1

    def test_info_probe_reads_one_cold_page(self, run: Run, data: Path) -> None:
        make_cold(data)
        [facts] = json.loads(run("info", data, "--json")[1])["files"]
        assert facts["resident_pages"] == 0
        state = cache_state(str(data))
        assert state is not None
        assert state.cached <= 1

    def test_info_of_empty_file(self, run: Run, empty: Path) -> None:
        code, out, err = run("info", empty)
        assert (code, err) == (0, "")
        assert "nothing to map" in out


class TestResidency:
    def test_chart_shows_the_half_in_memory(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "half.bin"
        path.write_bytes(os.urandom(64 * PAGE))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        make_cold(path)
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(file.fileno(), 32 * PAGE, 0)
        code, out, _ = run("residency", path, "--width", "8")
        assert code == 0
        assert "[████    ]" in out
        assert "32/64 pages" in out
        assert " 50.0 %" in out

    def test_folder_is_searched_once_per_file(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        for name in ("b/two", "a", "c"):
            (tmp_path / name).write_bytes(b"x" * PAGE)
        (tmp_path / "linked").hardlink_to(tmp_path / "a")
        (tmp_path / "pointer").symlink_to(tmp_path / "c")
        os.mkfifo(tmp_path / "fifo")
        document = json.loads(run("residency", tmp_path, "--json")[1])
        assert [entry["path"] for entry in document["files"]] == [
            str(tmp_path / name) for name in ("a", "c", "b/two")
        ]
        assert document["total"] == {
            "files": 3,
            "resident_pages": 3,
            "total_pages": 3,
            "resident_bytes": 3 * PAGE,
            "bytes": 3 * PAGE,
        }
        assert document["errors"] == []

    def test_many_files_keep_their_order(self, run: Run, tmp_path: Path) -> None:
        names = [f"{number:03}" for number in range(150)]
        for name in names:
            (tmp_path / name).write_bytes(name.encode())
        code, out, _ = run("residency", tmp_path)
        assert code == 0
        assert [line.rpartition("/")[2] for line in out.splitlines()[:-1]] == names
        assert out.splitlines()[-1].endswith("total of 150 files")

    def test_residency_of_empty_file(self, run: Run, empty: Path) -> None:
        code, out, err = run("residency", empty)
        assert (code, err) == (0, "")
        picture, total = out.splitlines()
        assert picture.split()[:3] == total.split()[:3] == ["empty", "0/0", "pages"]
        assert f"[{' ' * 40}]" in picture

    def test_residency_of_nothing_claims_nothing(self, run: Run, tmp_path: Path) -> None:
        said = "no file was looked at, 2 could not be used\n"
        assert run("residency", tmp_path / "missing", tmp_path / "gone")[:2] == (1, said)
        assert run("residency", tmp_path) == (0, "no file was looked at\n", "")

    def test_residency_hidden_is_said(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to become somebody who does not own the file")
        # Not tmp_path: other users may not enter its parents. All is imported before the change
        # of user, because the new user may not read the interpreter's own files, either.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "theirs.bin")
            path.write_bytes(b"x" * PAGE)
            Path(folder).chmod(0o711)
            path.chmod(0o644)
            code = (
                "import os, sys, concurrent.futures.thread, anyio._backends._asyncio\n"
                "from aiommap._cli import main\n"
                "os.setgroups([]); os.setegid(65534); os.seteuid(65534)\n"
                f"sys.exit(main([*sys.argv[1:], {str(path)!r}]))"
            )
            for name in ("residency", "info", "prewarm", "bench", "demo"):
                arguments = SHORT if name in ("bench", "demo") else ()
                result = run_code(code, name, *arguments)
                assert (result.returncode, result.stderr) == (0, "")
                assert (", 1 hidden\n" if name == "residency" else "hidden") in result.stdout

    def test_awkward_names_stay_on_one_line(self, tmp_path: Path) -> None:
        raw = os.fsencode(tmp_path) + b"/new\nline \xe9 [red]"
        Path(os.fsdecode(raw)).write_bytes(b"x")
        result = spawn("residency", tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[0].endswith("/new\\nline \\xe9 [red]")
        document = json.loads(spawn("residency", tmp_path, "--json").stdout)
        assert os.fsencode(document["files"][0]["path"]) == raw

    def test_output_that_is_ascii_only(self, data: Path) -> None:
        result = spawn("residency", data, env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert result.returncode == 0, result.stderr
        assert "[####" in result.stdout


class TestPrewarm:
    def test_prewarm_makes_cold_file_resident(self, run: Run, data: Path) -> None:
        make_cold(data)
        [outcome] = json.loads(run("prewarm", data, "--json")[1])["files"]
        assert outcome["resident_pages_before"] == 0
        assert outcome["resident_pages"] == outcome["total_pages"] == 41
        assert outcome["cached_pages"] == 41

    def test_prewarm_line_tells_rate_and_resident(self, run: Run, data: Path) -> None:
        code, out, err = run("prewarm", data)
        assert (code, err) == (0, "")
        assert out.startswith(f"{data}: ")
        assert "MiB/s; 41 of 41 pages resident (100.0 %)" in out

    def test_prewarm_of_empty_file(self, run: Run, empty: Path) -> None:
        code, out, err = run("prewarm", empty)
        assert (code, err) == (0, "")
        assert "nothing to bring into memory" in out


@pytest.mark.slow
class TestBench:
    def test_bench_measures_and_leaves_the_file(self, run: Run, data: Path) -> None:
        before, content = data.stat(), data.read_bytes()
        code, out, err = run("bench", data, *SHORT, "--json")
        assert (code, err) == (0, "")
        document = json.loads(out)
        names = [contender["name"] for contender in document["contenders"]]
        assert names[:3] == ["aiommap", "mmap in a thread", "pread in a thread"]
        for contender in document["contenders"]:
            assert contender["operations"] > 0
            assert contender["worst_gap_seconds"] > 0
            assert contender["p50_seconds"] <= contender["p99_seconds"]
            assert contender["resident_share_before"] == 1.0
        assert (data.stat().st_mtime_ns, data.stat().st_size) == (
            before.st_mtime_ns,
            before.st_size,
        )
        assert data.read_bytes() == content

    def test_bench_table_has_a_row_for_each(self, run: Run, data: Path) -> None:
        code, out, _ = run("bench", data, *SHORT, "--cold")
        assert code == 0
        assert "dropped from memory before each" in out
        for name in ("aiommap", "mmap in a thread", "pread in a thread"):
            assert any(line.startswith(name) for line in out.splitlines())

    def test_bench_without_a_library(
        self, run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "aiofiles", None)
        code, out, _ = run("bench", data, *SHORT)
        assert code == 0
        assert "aiofiles is not installed: left out" in out

    def test_bench_block_larger_than_file(self, run: Run, data: Path) -> None:
        document = json.loads(run("bench", data, *SHORT, "--block", "1M", "--json")[1])
        assert document["block"] == data.stat().st_size


class TestOutput:
    def test_pipe_gets_plain_lines(self, data: Path) -> None:
        result = spawn("residency", data)
        assert "\x1b" not in result.stdout
        assert "\r" not in result.stdout

    @pytest.mark.parametrize("name", ["residency", "--help"])
    def test_pipe_closed_by_reader_is_no_traceback(self, data: Path, name: str) -> None:
        ours, theirs = os.pipe()
        os.close(ours)
        arguments = [name] if name.startswith("-") else [name, data]
        try:
            result = subprocess.run(
                command(*arguments), stdout=theirs, stderr=subprocess.PIPE, check=False, timeout=60
            )
        finally:
            os.close(theirs)
        assert (result.returncode, result.stderr) == (141, b"")

    def test_terminal_gets_colour_and_progress(self, data: Path) -> None:
        pytest.importorskip("rich")
        code, out = on_terminal("prewarm", data)
        assert code == 0
        assert "\x1b[1m" in out
        assert "━" * 40 in out
        assert "41 of 41 pages resident" in out

    def test_terminal_table_shows_every_row(self, data: Path) -> None:
        pytest.importorskip("rich")
        code, out = on_terminal("bench", data, *SHORT)
        assert code == 0
        assert "─" in out
        assert "pread in a thread" in out

    def test_terminal_without_rich_is_plain(self, data: Path) -> None:
        code, out = on_terminal(
            code="import sys; sys.modules['rich'] = None\n"
            "from aiommap._cli import main\n"
            f"sys.exit(main(['prewarm', {str(data)!r}]))"
        )
        assert code == 0
        assert "\x1b" not in out
        assert "41 of 41 pages resident" in out

    def test_terminal_json_is_json(self, data: Path) -> None:
        code, out = on_terminal("info", data, "--json")
        assert code == 0
        assert json.loads(out)["command"] == "info"


if __name__ == "__main__":
    os.environ.update(COLUMNS="80", NO_COLOR="1")
    HELP_FILE.write_text(render_help())
