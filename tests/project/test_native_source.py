"""Rules of the C sources, and the SIGBUS guard by itself under UBSan."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "src" / "aiommap" / "_csrc"
HARNESSES = [*(ROOT / "tests" / "native").glob("*_harness.c")]
CASES = {
    case: harness.stem
    for harness in HARNESSES
    for case in re.findall(r'^    \{"(\w+)", \w+\},$', harness.read_text("utf-8"), re.MULTILINE)
}
#: Each takes all mappings that the kernel allows; the quick tests keep one other case that does.
SLOW = ("limit_in_threads", "limit_lifted")
FILES = sorted(str(path.relative_to(CSRC)) for path in CSRC.rglob("*.[ch]"))

#: These never include Python.h, so no Python code can run in them.
WITHOUT_PYTHON = sorted(name for name in FILES if name.startswith("sys/") and name.endswith(".c"))

MAX_LINES = 500
#: A public class may be longer, because users read it as documentation.
MAY_BE_LONGER = {"src/aiommap/_file/mapped_file.py"}
SOURCE_FOLDERS = ("src", "tests", "benchmarks", "examples")
SOURCE_SUFFIXES = {".py", ".pyi", ".c", ".h"}

COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
STRING = re.compile(r'"(?:\\.|[^"\\])*"')
#: House style: only the braces of a function are in the first column.
FUNCTION = re.compile(r"^\w[^\n;]*\([^;{}]*\)\n\{\n(?P<body>.*?)^\}$", re.MULTILINE | re.DOTALL)
#: A function that other files can call.
DEFINED = re.compile(r"^(?!static (?!inline)|__)\w[\w *]*?\b(\w+)\([^;{}]*\)\n\{$", re.MULTILINE)
STRUCT = re.compile(
    r"^(?:typedef )?struct(?P<tag> \w+)? \{(?P<beside>[^\n]*)\n(?P<fields>.*?)^\}(?P<name> ?\w*);",
    re.MULTILINE | re.DOTALL,
)
#: A field and the comment behind it, which may go on below.
FIELD = re.compile(r"^ {4}(?P<field>\w[^;/]*);(?P<comment>[^\n]*(?:\n +\*[^\n]*)*)", re.MULTILINE)
INCLUDE = re.compile(r'^#include [<"]([^>"]+)[>"]', re.MULTILINE)
GIL = re.compile(r"\bPy_(BEGIN|END)_ALLOW_THREADS\b")
LEAVES = re.compile(r"\b(?:return|goto|break|continue)\b")
PYTHON_CALL = re.compile(r"\b_?Py[A-Z]\w*")
#: A comment between fields is about the fields that follow it.
SECTION = re.compile(r"^ {4}/\*[^\n]*(?:\n +\*[^\n]*)*\*/$", re.MULTILINE)
#: How a comment says who may touch a field, and who writes it.
TOUCHED_BY = re.compile(
    r"\bGIL\b|\bconstant\b|\w*lock\b|\bthread\b|\batomic\b|\bcaller\b", re.IGNORECASE
)
UNWRITTEN = re.compile(r"\bconstant\b|\bthe caller's own\b", re.IGNORECASE)
WRITTEN_BY = re.compile(r"\bwritten by ([^.;]*?(?:\.[ch]\b[^.;]*?|Python)+)(?=[.;]|\*/|$)")
#: Assignments to fields of a Mapping, by the names that our functions give it.
ASSIGNED = re.compile(
    r"(?:(?P<step>\+\+|--)|&)?\b(?:self|mapping)->(?P<field>\w+)(?:\.(?P<part>\w+))?"
    r"\s*(?P<how>=(?!=)|\+\+|--|[-+|&]=)?"
)


def text_of(name):
    return (CSRC / name).read_text(encoding="utf-8")


def code_of(name):
    """Return the source with comments and string contents blanked out."""
    return STRING.sub('""', COMMENT.sub(" ", text_of(name)))


def includes(name):
    """Return all headers that a file includes, also through our own headers."""
    found, pending = set(), [name]
    while pending:
        here = pending.pop()
        for header in INCLUDE.findall(text_of(here)):
            own = os.path.normpath(Path(here).parent / header)
            known = own if (CSRC / own).exists() else header
            if known not in found and known == own:
                pending.append(own)
            found.add(known)
    return found


def calls_by_module():
    """Return for each module (a C file with its header) the modules whose functions it calls."""
    modules = {name: str(Path(name).with_suffix("")) for name in FILES}
    owners = {
        function: modules[name] for name in FILES for function in DEFINED.findall(code_of(name))
    }
    calls = {module: set() for module in modules.values()}
    for name, module in modules.items():
        bodies = " ".join(found["body"] for found in FUNCTION.finditer(code_of(name)))
        called = re.findall(r"\b\w+(?=\()", bodies)
        calls[module] |= {owners[one] for one in called if one in owners} - {module}
    return calls


def without_gil_spans(code):
    """Yield every piece of code that runs without the GIL; fail where a pair is broken."""
    begun = None
    for mark in GIL.finditer(code):
        if mark[1] == "BEGIN":
            assert begun is None, f"a second Py_BEGIN_ALLOW_THREADS in {code!r}"
            begun = mark.end()
        else:
            assert begun is not None, f"Py_END_ALLOW_THREADS without its beginning in {code!r}"
            yield code[begun : mark.start()]
            begun = None
    assert begun is None, f"Py_BEGIN_ALLOW_THREADS without its end in {code!r}"


def macro_statements(code):
    """Yield the statements passed to WITHOUT_GIL, which wraps them in such a pair."""
    for use in re.finditer(r"\bWITHOUT_GIL\((?!pin, mapping, statement)", code):
        depth, at = 1, use.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(code[at], 0)
            at += 1
        yield code[use.end() : at - 1]


def structs():
    """Yield each struct of a header: the comments about the whole struct, and its fields."""
    for header in (name for name in FILES if name.endswith(".h")):
        text = text_of(header)
        for found in STRUCT.finditer(text):
            before = text[: found.start()]
            above = before.rpartition("/*")[2] if before.endswith("*/\n") else ""
            name = (found["tag"] or found["name"]).strip()
            yield pytest.param(above + found["beside"], found["fields"], id=f"{header}:{name}")


@pytest.mark.parametrize("name", WITHOUT_PYTHON)
def test_sys_knows_nothing_of_python(name):
    found = includes(name)
    assert not {header for header in found if "Python" in header or header.startswith("py/")}
    assert not PYTHON_CALL.search(code_of(name))


def test_modules_call_each_other_in_no_circle():
    calls = calls_by_module()
    assert "py/accounting" in calls["py/gather"]
    tuple(TopologicalSorter(calls).static_order())  # raises CycleError, which names the circle


def test_only_the_guard_jumps():
    jumping = {name for name in FILES if re.search(r"\bsig(?:set|long)jmp\b", code_of(name))}
    assert jumping == {"sys/guard.c"}


@pytest.mark.parametrize("name", FILES)
def test_gil_is_given_up_in_pairs(name):
    code = code_of(name)
    functions = [found["body"] for found in FUNCTION.finditer(code)]
    rest = FUNCTION.sub("", code)
    spans = [span for part in (*functions, rest) for span in without_gil_spans(part)]
    for span in (*spans, *macro_statements(code)):
        assert not LEAVES.search(span), f"leaves without the GIL: {span}"
        assert not PYTHON_CALL.search(span), f"calls Python without the GIL: {span}"


def test_patterns_see_the_house_style():
    """If the patterns did not match the house style, the tests above would prove nothing."""
    code = {name: code_of(name) for name in FILES}
    assert all(FUNCTION.search(code[name]) for name in FILES if name.endswith(".c"))
    pairs = [mark for text in code.values() for mark in GIL.finditer(text)]
    spans = [span for text in code.values() for span in without_gil_spans(text)]
    assert len(pairs) == 2 * len(spans) > 0
    assert any(list(macro_statements(text)) for text in code.values())
    declared = sum(
        len(re.findall(r"\bstruct(?: \w+)? \{", code[name])) for name in FILES if name[-1] == "h"
    )
    assert len(list(structs())) == declared > 0
    assert {"truncated_source", "foreign_load"} < set(CASES)


def fields_of(about_all, text):
    """Yield each field of a struct, with all comments about it."""
    about = about_all
    marks = sorted([*SECTION.finditer(text), *FIELD.finditer(text)], key=lambda mark: mark.start())
    for mark in marks:
        if mark.re is SECTION:
            about = f"{about_all} {mark[0]}"
        else:
            yield mark["field"], f"{about} {mark['comment']}"


def writers_in(comment):
    found = WRITTEN_BY.search(" ".join(comment.split()))
    return set(re.findall(r"\w+\.[ch]\b|Python", found[1])) if found else set()


@pytest.mark.parametrize(("about_all", "fields"), [*structs()])
def test_fields_say_who_may_touch_them(about_all, fields):
    """In a comment beside the field, above several fields, or above the struct."""
    found = [*fields_of(about_all, fields)]
    assert found
    assert [field for field, comment in found if not TOUCHED_BY.search(comment)] == []


@pytest.mark.parametrize(("about_all", "fields"), [*structs()])
def test_fields_say_which_file_writes_them(about_all, fields):
    names = {Path(name).name for name in FILES} | {"Python"}
    for field, comment in fields_of(about_all, fields):
        if not UNWRITTEN.search(comment):
            assert writers_in(comment), field
            assert writers_in(comment) <= names, field


def mapping_writers():
    """Return which files write each field of a Mapping, as its comments say."""
    for param in structs():
        if param.id == "py/mapping.h:Mapping":
            about_all, fields = param.values
            return {
                name: writers_in(comment)
                for field, comment in fields_of(about_all, fields)
                for name in re.findall(r"(\w+)(?=,|$)", field)
            }
    raise AssertionError("there is no Mapping")


def test_mapping_fields_written_by_their_writers():
    """All but the constructor, which fills in every field."""
    writers, strange, seen = mapping_writers(), set(), set()
    for name in (name for name in FILES if "py/mapping.h" in {name, *includes(name)}):
        code = re.sub(r"\nstatic void fill_in\(.*?\n\}\n", "\n", code_of(name), flags=re.DOTALL)
        for found in ASSIGNED.finditer(code):
            field = found["field"]
            if field in writers and (found["step"] or found["how"]):
                seen.add(field)
                if Path(name).stem not in {Path(writer).stem for writer in writers[field]}:
                    strange.add((name, field))
    assert strange == set()
    assert {"sequence", "dirty_since", "fence", "region", "pins", "counters"} <= seen


@pytest.mark.parametrize("folder", SOURCE_FOLDERS)
def test_source_files_are_short_enough(folder):
    paths = [path for path in (ROOT / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in paths
    }
    too_long = {name for name, lines in lengths.items() if lines > MAX_LINES}
    assert {name: lengths[name] for name in too_long - MAY_BE_LONGER} == {}


def run(*command, **options):
    # A preloaded sanitizer is for Python only, and UBSan must leave a fatal SIGBUS as it is.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["UBSAN_OPTIONS"] = "handle_sigbus=0"
    options |= {"capture_output": True, "text": True, "timeout": 150}
    return subprocess.run([*map(str, command)], env=environment, **options)


def compile_harnesses(folder):
    """Compile the C code without Python once, and link it with each harness."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    strict = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-pthread"]
    undefined = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
    empty = run(compiler, *undefined, "-xc", "-", "-o", folder / "empty", input="int main(){}")
    if empty.returncode:
        pytest.skip("the C compiler has no UBSan runtime")
    command = [compiler, *strict, *undefined, f"-I{CSRC / 'sys'}"]
    made = run(*command, "-c", *(CSRC / name for name in WITHOUT_PYTHON), cwd=folder)
    assert made.returncode == 0, made.stderr
    for harness in HARNESSES:
        made = run(*command, *folder.glob("*.o"), harness, "-o", folder / harness.stem)
        assert made.returncode == 0, made.stderr


@pytest.fixture(scope="module")
def harnesses(once):
    """The C code without Python and its harnesses, compiled with UBSan and warnings as errors."""
    return once("harnesses", compile_harnesses)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow if case in SLOW else ())
        for case in CASES
        if not case.startswith("foreign_")
    ],
)
def test_guard_by_itself(harnesses, tmp_path, case):
    done = run(harnesses / CASES[case], case, tmp_path / "file")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("foreign_")])
def test_foreign_sigbus_still_kills(harnesses, tmp_path, case):
    assert run(harnesses / CASES[case], case, tmp_path / "file").returncode == -signal.SIGBUS


def test_harness_refuses_unknown_cases(harnesses, tmp_path):
    assert run(harnesses / "guard_harness", "unheard_of", tmp_path / "file").returncode == 2
