"""Atomic words in pages that the file lost: the process survives, with an error for each case."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.fork_server import run_code

TRUNCATED = """
import os, signal, subprocess, sys, threading, warnings, anyio, aiommap
path, backend, blocked = sys.argv[1:]
PAGE = aiommap.PAGE_SIZE
if blocked == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGBUS})
    warnings.filterwarnings("ignore", "SIGBUS is blocked")

async def main():
    f = await aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never())
    words = [f.atomic_u32(8 * PAGE), f.atomic_u64(8 * PAGE + 8)]
    array = f.atomic_u64_array(8 * PAGE, 4)
    for word in words:
        word.store(1)                     # now the library knows that the pages exist
    subprocess.run(["truncate", "-s", str(PAGE), path], check=True)
    acts = [lambda: array.load(0), lambda: array.fetch_add(1, 1)]
    for word in words:
        acts += [
            word.load, lambda word=word: word.store(1), lambda word=word: word.swap(1),
            lambda word=word: word.compare_exchange(1, 2),
            *(lambda word=word, name=name: getattr(word, "fetch_" + name)(1)
              for name in ("add", "sub", "and", "or", "xor")),
        ]

    def try_all():
        for act in acts:
            try:
                act()
            except aiommap.MappingFaultError as error:
                assert error.offset // PAGE == 8 and error.size == PAGE, error
                assert "shrank" in str(error)
                continue
            os._exit(3)

    try_all()
    thread = threading.Thread(target=try_all)
    thread.start()
    thread.join()
    assert f.statistics().faults == 2 * len(acts)
    first = f.atomic_u64(0)
    before = first.load()
    first.fetch_add(1)
    assert first.load() == (before + 1) % 2**64
    await f.aclose()
    print("alive")

anyio.run(main, backend=backend)
if blocked == "blocked":
    assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_BLOCK, ())
"""

LOST = """
import os, sys, anyio, aiommap
path = sys.argv[1]
PAGE = aiommap.PAGE_SIZE

async def main():
    f = await aiommap.open(path, "r+")
    f.atomic_u64(8 * PAGE).store(1)
    os.truncate(path, PAGE)
    try:
        await f.flush()
    except aiommap.FlushError as error:
        assert "truncated" in str(error)
    else:
        raise SystemExit("a lost word was reported as durable")
    try:
        f.atomic_u64(0).store(1)
    except aiommap.FlushError:
        print("alive")
    try:
        await f.aclose()
    except aiommap.FlushError:
        pass

anyio.run(main)
"""

FULL = """
import errno, os, sys, anyio, aiommap
path = sys.argv[1]
PAGE = aiommap.PAGE_SIZE

async def main():
    f = await aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never())
    with open(path + ".fill", "wb", buffering=0) as fill:
        try:
            while True:
                fill.write(bytes(PAGE))
        except OSError:
            pass
    word = f.atomic_u64(3 * PAGE)
    try:
        word.fetch_add(1)
    except OSError as error:
        assert (error.errno, error.filename) == (errno.ENOSPC, path), error
        assert str(3 * PAGE) in str(error), error
        os.unlink(path + ".fill")
        assert word.fetch_add(1) == 0
        print("alive")
    await f.aclose()

anyio.run(main)
"""

RACE = """
import os, sys, time, anyio, aiommap
path = sys.argv[1]
PAGE = aiommap.PAGE_SIZE

async def main():
    f = await aiommap.open(path, "r+", flush=aiommap.FlushPolicy.never())
    array = f.atomic_u64_array(0, 16 * PAGE // 8)
    child = os.fork()
    if not child:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            os.truncate(path, PAGE)
            os.truncate(path, 16 * PAGE)
        os._exit(0)
    good = faults = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        for index in range(0, len(array), 61):
            try:
                array.fetch_add(index, 1)
                good += 1
            except aiommap.MappingFaultError:
                faults += 1
    assert good and faults, (good, faults)
    await f.aclose()
    print("alive")

anyio.run(main)
"""


def run(script, *arguments):
    done = run_code(script, *arguments)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("blocked", ["blocked", "open"])
def test_words_of_a_truncated_file_raise(path, backend, blocked):
    run(TRUNCATED, path, backend, blocked)


def test_flush_reports_words_cut_off(path):
    run(LOST, path)


def test_words_on_a_full_file_system(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs to be root")
    try:
        with open(folder / "sparse", "wb") as file:
            file.truncate(16384)
        run(FULL, folder / "sparse")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_words_truncated_at_any_moment(path):
    run(RACE, path)
