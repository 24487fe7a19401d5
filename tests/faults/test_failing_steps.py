"""Verbs of several steps: whichever step fails, size, file and mapping agree afterwards."""

from __future__ import annotations

import pytest

from tests.support.gates import expect_gated

#: A verb on an open file of 64 pages, and the calls that its steps make.
VERBS = {
    "shrink": ("await f.resize(9 * PAGE + 7)", "ftruncate fence"),
    "shrink_grown": ("await f.resize(3 * PAGE)", "ftruncate fence"),
    "grow": ("await f.resize(100 * PAGE + 7)", "reserve ftruncate"),
    "grow_again": ("await f.resize(64 * PAGE)", "reserve ftruncate unfence"),
    "grow_beyond": ("await f.resize(300 * PAGE)", "map reserve ftruncate unfence mlock2"),
    "ensure": ("await f.ensure(100 * PAGE + 7)", "reserve ftruncate unfence"),
    "refresh_cut": ("os.truncate(name, 20 * PAGE); await f.refresh()", "fence ftruncate"),
    "refresh_more": ("os.truncate(name, 80 * PAGE); await f.refresh()", "map unfence ftruncate"),
    "refresh_much": ("os.truncate(name, 300 * PAGE); await f.refresh()", "map unfence mlock2"),
    "punch_hole": ("await f.punch_hole(PAGE, 30 * PAGE)", "fallocate"),
    "reopen": ("await f.reopen()", "map ftruncate"),
}

SCRIPT = """
import contextlib, itertools

def contents(name):
    with open(name, "rb") as file:
        return file.read()

async def attempt(name, call, nth, on):
    async with aiommap.open(name, "r+", capacity=128 * PAGE, flush=FlushPolicy.manual()) as f:
        await f.resize(64 * PAGE)
        await f.write(0, bytes(range(1, 255)) * 1000)
        if {before_cut}:
            view = f.view(0, 64 * PAGE)
            old = view.memory
            await f.resize(10 * PAGE)
        {lock}await f._open.pager.lock(0, f.size)
        await f.flush()
        disk = call in ("ftruncate", "reserve", "fallocate")
        fail(call, nth, errno.EIO if disk else errno.ENOMEM, on)
        said = None
        try:
            {act}
        except OSError as error:
            said = error
        reached = gate.gate_left() != nth
        gate.gate_fail(b"", 0, 0, 0)
        size = os.stat(name).st_size
        # The file may be longer than f.size: if others made it longer, which is taken over later,
        # or if undoing a growth failed as well.
        shorter = said is not None and f.size < size and ({others} or on)
        whole = size == f._mapping.file_end == -(-f.size // PAGE) * PAGE
        assert f.size == size or whole or shorter, (call, nth, on, f.size, size, said)
        content = contents(name)[: f.size]
        assert await f.read(0, f.size) == content
        with f.view(0, f.size) as seen, seen.memory as memory:
            assert bytes(memory) == content, (call, nth, on, said)
            memory[-1:] = b"z"
        assert contents(name)[f.size - 1 : f.size] == b"z"
        await f.write(f.size - 2, b"y")
        await f.flush()
        assert f._mapping.first_bad is None
        await f.resize(70 * PAGE)  # everything works again
        await f.resize(5 * PAGE)
        assert f.size == os.stat(name).st_size == 5 * PAGE
        return reached

async def main():
    for number, (call, on) in enumerate(itertools.product({calls!r}.split(), (False, True))):
        for nth in itertools.count(1):
            name = make(f"{{number}}.{{nth}}", 64 * PAGE)
            if not await attempt(name, call, nth, on) or nth > 6:
                break

run(main)
"""


#: Verbs that lock pages again, or unlock them.
QUICK_LOCKED = {"shrink_grown", "grow_beyond", "refresh_much"}
CASES = [
    pytest.param(
        verb,
        locked,
        marks=[pytest.mark.slow] if locked and verb not in QUICK_LOCKED else [],
        id=f"{verb}-{'locked' if locked else 'plain'}",
    )
    for verb in VERBS
    for locked in (False, True)
]


@pytest.mark.parametrize(("verb", "locked"), CASES)
def test_step_that_fails(tmp_path, verb, locked):
    act, calls = VERBS[verb]
    code = SCRIPT.format(
        before_cut=verb in ("grow_again", "grow_beyond", "refresh_more", "ensure"),
        lock="" if locked else "if 0: ",
        act=act,
        others=verb.startswith("refresh"),
        calls=calls,
    )
    expect_gated(code, tmp_path)
