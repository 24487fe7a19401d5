"""Completion scripts in the real shells, and the examples of the help in the real parser."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.cli.test_cli import HELP_FILE, on_terminal, spawn
from tests.support.internals import SHELLS, build_parser, main

pytest.importorskip("shtab", reason="shtab is not installed (extra: cli)")

ASK_BASH = """
source ./script
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_shtab_aiommap "$1" "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
ASK_FISH = """
source ./script
complete -C (string join ' ' -- $argv) | string replace -r '\\t.*' ''
"""
QUESTIONS = [
    pytest.param(("re",), {"residency"}, id="command"),
    pytest.param(("bench", "--ta"), {"--tasks"}, id="option"),
    pytest.param(("completion", "z"), {"zsh"}, id="choice"),
    pytest.param(("info", "mod"), {"model.bin"}, id="file"),
    pytest.param(("demo", "--dir", "fol"), {"folder"}, id="folder"),
]


def answers(shell, words, folder, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    (folder / "script").write_text(capsys.readouterr().out)
    (folder / "model.bin").touch()
    (folder / "folder").mkdir()
    asks = {
        "bash": ["bash", "--norc", "-c", ASK_BASH, "bash", "aiommap", *words],
        "fish": ["fish", "--no-config", "-c", ASK_FISH, "aiommap", *words],
    }
    done = subprocess.run(
        asks[shell],
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    return {line.rstrip("/") for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize(("words", "expected"), QUESTIONS)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_shell_completes(shell, words, expected, tmp_path, capsys):
    assert answers(shell, words, tmp_path, capsys) == expected


def test_zsh_accepts_the_script(tmp_path, capsys):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef aiommap\n")
    (tmp_path / "_aiommap").write_text(script)
    subprocess.run(["zsh", "-n", str(tmp_path / "_aiommap")], check=True, timeout=150)


@pytest.mark.parametrize("shell", SHELLS)
def test_script_has_every_command_and_option(shell, capsys):
    assert main(["completion", shell]) == 0
    words = set(re.findall(r"[a-z]+", capsys.readouterr().out))
    known = set(re.findall(r"^ +--([a-z]+)|, --([a-z]+)", HELP_FILE.read_text(), re.MULTILINE))
    options = {name for pair in known for name in pair if name}
    assert options | {"info", "residency", "prewarm", "bench", "demo", "completion"} <= words


def test_missing_shtab_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pip install 'aiommap[cli]'" in captured.err
    assert captured.err.count("\n") == 1


def examples():
    """Yield the examples of the help, without pipes and redirections."""
    for part in re.findall(r"^examples:\n((?:  .+\n)+)", HELP_FILE.read_text(), re.MULTILINE):
        for line in part.splitlines():
            command = re.split(r" [|>] ", line.strip())[0]
            yield pytest.param(shlex.split(command), id=command)


@pytest.mark.parametrize("words", [*examples()])
def test_help_example_is_accepted(words):
    program, *arguments = words
    assert program == "aiommap"
    assert callable(build_parser().parse_args(arguments).run)


def test_help_examples_of_every_command():
    assert len({example.values[0][1] for example in examples()}) == 8


class TestColour:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"x" * 10_000)
        return path

    @pytest.mark.slow
    def test_pipe_gets_no_colour_even_if_forced(self, file):
        forced = {**os.environ, "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm"}
        for arguments in (["info", file], ["info", "--help"], ["prewarm", file]):
            result = spawn(*arguments, env=forced)
            assert result.returncode == 0
            assert "\x1b" not in result.stdout + result.stderr

    @pytest.mark.parametrize("value", ["", "1"], ids=["unset", "set"])
    def test_no_color_is_obeyed_on_a_terminal(self, file, value):
        pytest.importorskip("rich")
        code = f"import os, sys; from aiommap._cli import main; os.environ['NO_COLOR'] = {value!r}"
        code += f"\nsys.exit(main(['demo', {str(file)!r}, '--seconds', '0.05']))"
        status, out = on_terminal(code=code)
        assert status == 0
        coloured = re.search(r"\x1b\[[0-9;]*3[0-7]", out) is not None
        assert coloured == (not value)
