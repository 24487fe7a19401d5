"""The example of an index in an object store, over HTTP and in a folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import remote_servers
from tests.support.example_scripts import EXAMPLES, load

SCRIPT = EXAMPLES / "remote_index.py"
WORDS = {f"word-{number:05}": number for number in range(20_000)}


def run(*arguments, **options):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, **options)


def gets(done):
    return int(done.stderr.split()[0])


def test_look_up_words(tmp_path):
    index = tmp_path / "index"
    index.write_bytes(load(SCRIPT).build(WORDS))
    cache = tmp_path / "cache"
    arguments = (index.as_uri(), "word-00007", "word-19999", "none", "--cache", cache)
    first = run(*arguments)
    assert first.stdout == "word-00007 7\nword-19999 19999\nnone None\n", first.stderr
    assert 0 < gets(first) < 20
    second = run(*arguments)
    assert second.stdout == first.stdout
    assert gets(second) == 0


def test_words_that_are_too_long():
    with pytest.raises(ValueError, match="more than 56"):
        load(SCRIPT).build({"w" * 57: 1})


@pytest.mark.slow
def test_follow_over_http(tmp_path):
    """Each line is answered from the index that is then in service."""
    server = remote_servers.start(remote_servers.Nginx, tmp_path)
    build = load(SCRIPT).build
    try:
        server.put("index", build(WORDS))
        arguments = [server.url("index"), "--cache", tmp_path / "cache", "--poll-interval", "0.01"]
        with subprocess.Popen(
            [sys.executable, SCRIPT, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:

            def ask(word):
                process.stdin.write(f"{word}\n")
                process.stdin.flush()
                return process.stdout.readline()

            assert ask("word-00012") == "word-00012 12\n"
            for version in range(1, 4):
                server.put(
                    "index", build({word: number + version for word, number in WORDS.items()})
                )
                while (answer := ask("word-00012")) != f"word-00012 {12 + version}\n":
                    assert answer == f"word-00012 {11 + version}\n"
            process.stdin.close()
            assert process.wait(100) == 0
    finally:
        server.stop()
