"""Facts about a release that are written in several places agree."""

from __future__ import annotations

import re
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.support.internals import native

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OLDEST = re.fullmatch(r">=3\.(\d+)", PROJECT["project"]["requires-python"])[1]


def test_stable_abi_is_of_the_oldest_python():
    header = (ROOT / "src" / "aiommap" / "_csrc" / "py" / "api.h").read_text(encoding="utf-8")
    assert f"#define Py_LIMITED_API 0x03{int(OLDEST):02X}0000\n" in header
    wheels = PROJECT["tool"]["cibuildwheel"]
    assert wheels["build"] == f"cp3{OLDEST}-*"
    assert wheels["config-settings"] == {"--build-option": f"--py-limited-api=cp3{OLDEST}"}
    assert f"--py-limited-api=cp3{OLDEST} " in (ROOT / ".ci" / "build").read_text(encoding="utf-8")


def test_oldest_python_agrees_everywhere():
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py3{OLDEST}"
    assert PROJECT["tool"]["pyright"]["pythonVersion"] == f"3.{OLDEST}"
    named = [text for text in PROJECT["project"]["classifiers"] if " :: 3." in text]
    assert named[0] == f"Programming Language :: Python :: 3.{OLDEST}"


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="no stable ABI without a GIL"
)
def test_native_module_is_one_for_all():
    assert re.search(r"\.abi3(-[\w-]+)?\.so$", native.__file__)  # from 3.15 on with a platform


def test_free_threaded_wheels_are_not_declared():
    assert not [text for text in PROJECT["project"]["classifiers"] if "Free Threading" in text]
    sources = (ROOT / "src" / "aiommap" / "_csrc").rglob("*.c")
    assert not [path for path in sources if "Py_mod_gil" in path.read_text(encoding="utf-8")]


def test_sdist_has_all_native_sources():
    (module,) = PROJECT["tool"]["setuptools"]["ext-modules"]
    listed = [*module["sources"], *module["depends"]]
    found = (ROOT / "src" / "aiommap" / "_csrc").rglob("*.[ch]")
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in found)


def test_changelog_begins_with_this_version():
    text = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    assert text.partition("\n## ")[2].split()[0] == PROJECT["project"]["version"]


def test_hosted_ci_only_calls_ours():
    """So every check of the hosted CI can be run anywhere."""
    for workflow in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        commands = re.findall(
            r"^ +- run: (.+)$", workflow.read_text(encoding="utf-8"), re.MULTILINE
        )
        allowed = re.compile(
            r"(sudo )?(bash )?\.ci/\w+( \w+)?|pipx run cibuildwheel.*|python3? -m venv .*"
        )
        assert commands
        assert [command for command in commands if not allowed.fullmatch(command)] == []


def brought(requirements):
    """Return the packages of an extra, and other extras in backquotes, as README writes them."""
    names = set()
    for text in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", text).groups()
        names |= {f"`{extra}`" for extra in extras.split(",")} if name == "aiommap" else {name}
    return names


def test_readme_lists_the_extras():
    extras = PROJECT["project"]["optional-dependencies"]
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Extras\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", table.partition("\n## ")[0], re.MULTILINE)
    assert {name: set(found.split(", ")) for name, found in rows} == {
        name: brought(requirements) for name, requirements in extras.items()
    }
    needed = brought(PROJECT["project"]["dependencies"])
    assert f"aiommap itself needs {' and '.join(sorted(needed))}." in table
