"""``aiommap completion``: a script that teaches a shell to complete the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import aiommap

from ._arguments import with_examples
from ._screen import Screen

SHELLS = ("bash", "zsh", "fish")

_DESCRIPTION = """\
Print a script that completes commands, options and file names. Write it once to the place
where the shell looks for completions."""

_EPILOG = with_examples(
    "aiommap completion bash > ~/.local/share/bash-completion/completions/aiommap",
    'aiommap completion zsh > "${fpath[1]}/_aiommap"',
    "aiommap completion fish > ~/.config/fish/completions/aiommap.fish",
)


def add_parser(commands: Any, build: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command to the command line; ``build`` makes the parser of the whole command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "completion", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=partial(run, build), json=False)


def run(
    build: Callable[[], argparse.ArgumentParser], options: argparse.Namespace, _: Screen
) -> None:
    """Print the script."""
    try:
        import shtab  # noqa: PLC0415  an extra, and only this command needs it
    except ImportError:
        raise aiommap.UnsupportedError(
            "print a completion script", "shtab is not installed: pip install 'aiommap[cli]'"
        ) from None
    kinds = {"FILE": shtab.FILE, "PATH": shtab.FILE, "DIR": shtab.DIRECTORY}
    parser = build()
    _prepare(parser, kinds)
    sys.stdout.write(f"{shtab.complete(parser, options.shell).rstrip()}\n")
    sys.stdout.flush()


def _prepare(parser: Any, kinds: dict[str, Any]) -> None:
    """Tell shtab which arguments are files, and what each command does.

    argparse has no public way to list the arguments of a parser; shtab uses the same attributes.
    """
    for action in parser._actions:  # noqa: SLF001
        if action.metavar in kinds:
            action.complete = kinds[action.metavar]
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for name, command in action.choices.items():
                _prepare(command, kinds)
                # shtab leaves out commands without a help text. Ours have none, because the
                # description of the whole command line lists them.
                summary = " ".join((command.description or "").split()).partition(". ")[0]
                listed = action._ChoicesPseudoAction(name, [], summary)  # noqa: SLF001
                action._choices_actions.append(listed)  # noqa: SLF001
