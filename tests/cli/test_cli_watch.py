"""``aiommap watch``, run in a process of its own."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


class Watching:
    """The command in a process of its own. Each line is waited for, but not forever."""

    def __init__(self, *arguments, **options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aiommap", "watch", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # or lines could be in a buffer, where select does not see them
            **options,
        )

    def line(self):
        """Return the next line of standard output."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(20), "no line came"
        return self.process.stdout.readline().decode()

    def document(self):
        return json.loads(self.line())

    def stop(self, number=signal.SIGINT):
        """Send a signal; return the code and the rest of both outputs."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=100)
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
def watch():
    begun = []

    def start(*arguments, **options):
        begun.append(Watching(*arguments, **options))
        return begun[-1]

    yield start
    for watching in begun:
        if watching.process.poll() is None:
            watching.process.kill()
            watching.process.communicate()


def wait_for(condition):
    """Wait until another process has made a condition true."""
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_change_is_a_line_until_a_signal(watch, tmp_path, number):
    path = tmp_path / "file"
    watching = watch(path)
    assert watching.line() == f"watching 1 path; not there yet: {path}\n"
    lines = []
    for act, words in (
        (lambda: path.write_bytes(b"x" * 100), None),
        (lambda: os.truncate(path, 2048), ["grown", "+1.9", "2.0", "KiB"]),
        (lambda: os.truncate(path, 10), ["truncated", "-2.0", "KiB", "10", "B"]),
        (lambda: path.chmod(0o600), ["metadata", "0", "10", "B"]),
        (path.unlink, ["removed", "-10", "B", "-", "-"]),
    ):
        act()
        line = watching.line()
        if words is None:  # one change or two: the file may be seen before it has its bytes
            assert line.split()[1] == "created"
            if line.split()[2] == "0":
                watching.line()
            continue
        lines.append(line)
        assert [word for word in words if word not in line.split()] == []
        assert line.endswith(f"  {path}\n")
    assert all(line[12:14] == "  " and line[2::3][:2] == "::" for line in lines)
    assert watching.stop(number) == (0, "", "")


def test_json_is_one_document_a_line(watch, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1234")
    watching = watch(one, two, one, "--json")
    assert watching.document() == {"command": "watch", "paths": [str(one), str(two)]}
    one.rename(two)
    found = {document["path"]: document for document in (watching.document(), watching.document())}
    removed, created = found[str(one)], found[str(two)]
    assert (removed["kind"], removed["old"]["size"], removed["new"]) == ("removed", 4, None)
    assert (created["kind"], created["old"], created["new"]["size"]) == ("created", None, 4)
    assert created["new"]["inode"] == two.stat().st_ino
    assert removed["latency_seconds"] is None
    assert 0 <= created["latency_seconds"] < 20
    assert (created["source"], created["merged"]) == ("event", 0)
    assert watching.stop() == (0, "", "")


def test_latency_is_omitted_for_turned_links(watch, tmp_path):
    """The age of the file that a link now leads to does not tell when the link was turned."""
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to("old")
    watching = watch(tmp_path / "link", "--json")
    watching.document()
    (tmp_path / "turned").symlink_to("new")
    (tmp_path / "turned").rename(tmp_path / "link")
    document = watching.document()
    assert (document["kind"], document["latency_seconds"]) == ("replaced", None)


def test_name_stays_on_one_line(watch, tmp_path):
    path = os.fsencode(tmp_path) + b"/new\nline \xe9"
    watching = watch(os.fsdecode(path))
    watching.line()
    os.mkdir(path)
    assert watching.line().endswith("/new\\nline \\xe9\n")
    assert watching.stop()[:2] == (0, "")


def test_reader_that_left_ends_it(watch, tmp_path):
    path = tmp_path / "file"
    watching = watch(path)
    watching.line()
    watching.process.stdout.close()
    path.touch()
    assert watching.process.wait(100) == 141
    assert watching.process.stderr.read() == b""
    watching.process.stderr.close()


SCRIPT = 'printf "%s %s %s %s\\n" "$AIOMMAP_KIND" "$AIOMMAP_OLD_SIZE" "$AIOMMAP_NEW_SIZE" '


def test_command_runs_for_each_change(watch, tmp_path):
    path, log = tmp_path / "file", tmp_path / "log"
    path.write_bytes(b"1234")
    watching = watch("file", "--exec", SCRIPT + f'"$AIOMMAP_PATH" >> {log}', cwd=tmp_path)
    watching.line()
    wanted = []

    def happened(line):
        wanted.append(line)
        wait_for(lambda: log.exists() and log.read_text().splitlines() == wanted)

    os.truncate(path, 8)
    happened(f"grown 4 8 {path}")
    path.unlink()
    happened(f"removed 8  {path}")
    (tmp_path / "other").write_bytes(b"1")
    (tmp_path / "other").rename(path)
    happened(f"created  1 {path}")
    code, out, err = watching.stop()
    assert (code, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == ["grown", "removed", "created"]


def test_commands_of_one_path_never_overlap(watch, tmp_path):
    """Each makes a folder and removes it, and fails if the folder is there already."""
    path, log = tmp_path / "file", tmp_path / "log"
    path.touch()
    script = f"mkdir {tmp_path}/busy || exit 9; sleep 0.1; rmdir {tmp_path}/busy; echo >> {log}"
    watching = watch(path, "--exec", script)
    watching.line()
    for size in range(1, 6):
        os.truncate(path, size)
        watching.line()
    wait_for(lambda: log.exists() and log.read_text() == "\n" * 5)
    assert watching.stop() == (0, "", "")


def test_commands_of_several_paths_overlap(watch, tmp_path):
    """Each waits until the other one has begun."""
    paths = [tmp_path / "a", tmp_path / "b"]
    script = (
        f"touch {tmp_path}/began-$(basename $AIOMMAP_PATH); "
        f"while ! [ -e {tmp_path}/began-a -a -e {tmp_path}/began-b ]; do sleep 0.01; done; "
        "touch $AIOMMAP_PATH.done"
    )
    watching = watch(*paths, "--exec", script)
    watching.line()
    for path in paths:
        path.touch()
    wait_for(lambda: all(path.with_suffix(".done").exists() for path in paths))
    assert watching.stop()[0] == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("exit 3", "the command ended with code 3"),
        ("kill -9 $$", "the command was killed by SIGKILL"),
        ("no-such-command", "the command ended with code 127"),
    ],
)
def test_command_that_fails_is_told(watch, tmp_path, command, words):
    path = tmp_path / "file"
    watching = watch(path, "--json", "--exec", f"echo out; {command}")
    watching.document()
    path.touch()
    watching.document()
    path.chmod(0o600)
    watching.document()
    expected = f"aiommap: {path}: {words}\n"
    err = ""
    while err.count(expected) < 2:
        err += watching.process.stderr.readline().decode()
    code, out, rest = watching.stop()
    assert (code, out, rest) == (1, "", "")
    assert err.count("out\n") == 2  # they are not among the documents


def test_command_still_running_is_ended(watch, tmp_path):
    """And so is what it started itself."""
    path, log = tmp_path / "file", tmp_path / "log"
    watching = watch(path, "--exec", f"sleep 1000 & echo $$ $! > {log}; wait")
    watching.line()
    path.touch()
    wait_for(lambda: log.exists() and log.read_text())
    processes = [int(word) for word in log.read_text().split()]
    code, _, err = watching.stop()
    assert (code, err) == (0, "")
    assert len(processes) == 2

    wait_for(lambda: not any(map(is_running, processes)))


def is_running(process):
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return b"1000" in file.read()
    except OSError:
        return False


def test_folder_is_refused_with_advice(watch, tmp_path):
    watching = watch(tmp_path)
    out, err = watching.process.communicate(timeout=100)
    assert (watching.process.returncode, out) == (2, b"")
    assert err.decode() == (
        f"aiommap: {tmp_path} is a folder, of which changes of files do not show: name the files "
        f"in it, as in: aiommap watch {tmp_path}/*\n"
    )
