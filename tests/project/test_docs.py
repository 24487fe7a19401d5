"""README and docs: every Python block runs, every link leads to a file, no machine is named.

A block that defines tests is run by pytest. A block that cannot run has ``<!-- no-run -->`` on the
line before it.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import aiommap
from tests.support.strict import PYTHON

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, *sorted((ROOT / "docs").glob("*.txt"))]
SOURCES = sorted(
    path
    for folder in ("src", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".pyi", ".c", ".h"}
)

BLOCK = re.compile(
    r"^(?P<mark><!-- no-run -->\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n"
    r"(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")
MENTIONED_PAGE = re.compile(r"\bdocs/(?P<name>\w+)(?:\.md)?")

#: Folders of one machine or one user. /proc, /dev and the like are the same everywhere.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:home|root|tmp|var|work|Users|opt|srv|mnt|media)/\w+")
REGISTRY_HOST = re.compile(
    r"\b(?:pypi|pythonhosted|anaconda|conda|npmjs|crates)\.(?:org|io|com)\b|--(?:extra-)?index-url"
)


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    """Yield (line number, code, may it run) of every Python block of a page."""
    text = path.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found["language"] in ("python", "py"):
            line = text.count("\n", 0, found.start("body")) + 1
            code = re.sub(rf"^{found['indent']}", "", found["body"], flags=re.MULTILINE)
            yield line, code, not found["mark"]


#: The first line of a block that is a conftest.py for the other blocks of its page.
CONFTEST = "# conftest.py\n"


def conftest_of(path):
    return "".join(code for _, code, _ in blocks(path) if code.startswith(CONFTEST))


SNIPPETS = [
    pytest.param(code, conftest_of(path), id=f"{name_of(path)}:{line}")
    for path in PAGES
    for line, code, runs in blocks(path)
    if runs and not code.startswith(CONFTEST)
]


def test_readme_shows_code_that_runs():
    assert [runs for _, _, runs in blocks(ROOT / "README.md")].count(True) >= 1


def test_blocks_are_closed_and_found():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        fences = len(re.findall(r"^ *```", text, re.MULTILINE))
        assert fences == 2 * len(BLOCK.findall(text)), name_of(path)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "conftest"), SNIPPETS)
def test_snippets_run(code, conftest, tmp_path):
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "snippet.py").write_text(code, encoding="utf-8")
    # pytest-asyncio would warn of an option that the snippet's folder does not set.
    options = "-m pytest -q -p no:cacheprovider -p no:asyncio".split()
    tests = options if "def test_" in code else []
    done = subprocess.run(
        [*PYTHON, *tests, "snippet.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr  # an error in a destructor is only printed there


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_lead_to_files(path):
    text = CODE.sub("", BLOCK.sub("", path.read_text(encoding="utf-8")))
    targets = [found["target"].partition("#")[0] for found in LINK.finditer(text)]
    relative = [target for target in targets if target and not SCHEME.match(target)]
    assert [target for target in relative if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["machine", "registry"])
def test_no_machine_or_registry_is_named(path, pattern):
    assert pattern.findall(path.read_text(encoding="utf-8")) == []


def errors(root=aiommap.MappedFileError):
    """Yield the names of all errors that we declare."""
    yield root.__name__
    for error in root.__subclasses__():
        if error.__module__.startswith("aiommap"):
            yield from errors(error)


def test_troubleshooting_has_every_error():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    explained = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert sorted(explained) == sorted(set(errors())), (
        "each error has a section in docs/troubleshooting.md: what it means, what to do"
    )


def test_reference_has_every_name_once():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: aiommap\.(\w+)$", text, re.MULTILINE)
    assert named[:3] == ["open", "Opening", "MappedFile"]
    assert sorted(set(aiommap.__all__) - set(named)) == []
    assert [name for name, count in Counter(named).items() if count > 1] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_are_read_on_their_own(path):
    """A page must not speak of the folder that it lies in: the site shows none."""
    text = " ".join(path.read_text(encoding="utf-8").split())
    assert re.findall(r"the (?:folder|directory) above", text) == []


def test_installing_is_told_alike():
    """Every page says: by name once it is published, and from the sources until then."""
    told = {name_of(path): path.read_text(encoding="utf-8").lower() for path in PAGES}
    by_name = {name: text for name, text in told.items() if "pip install aiommap" in text}
    assert by_name.keys() == {"README.md", "docs/index.md", "docs/install.md"}
    for text in by_name.values():
        assert "once it is published" in text
        assert "until then" in text


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_pages_named_by_sources_exist():
    missing = {
        (name_of(path), found[0])
        for path in SOURCES
        for found in MENTIONED_PAGE.finditer(path.read_text(encoding="utf-8"))
        if not (ROOT / "docs" / f"{found['name']}.md").exists()
    }
    assert missing == set()
