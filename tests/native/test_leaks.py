"""Ten thousand rounds of map, view, read, write, fail and close leave nothing behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import gc, os, sys
from aiommap import PAGE_SIZE
from tests.support.internals import native

Mapping, Wakeup = native.Mapping, native.Wakeup
Word, WordArray = native.Word, native.WordArray

path = sys.argv[1]
size = 64 * PAGE_SIZE
FLAGS = native.WRITABLE | native.NOWAIT | native.RESIDENCY_VISIBLE

def turn():
    fd = os.open(path, os.O_RDWR)
    mapping = Mapping(fd, size, size, FLAGS)
    mapping.attach(mapping, native.Receipt)  # a cycle, for the collector
    mapping.write_many([(5, memoryview(b"x" * 5000)), (9000, memoryview(b"y"))])
    mapping.write_now(0, b"z" * 100)
    mapping.read(0, size)
    mapping.read_nowait(3, 40000)
    mapping.read_into(0, bytearray(100))
    mapping.residency(0, size)
    mapping.end_writeback(mapping.begin_writeback(0, size))
    mapping.set_locked(0, 10, True)
    mapping.set_locked(0, 10, False)
    word = Word(mapping, [], 8, 4)
    array = WordArray(mapping, [word], 16, 8, 10)
    word.fetch_add(1)
    array.store(3, 2**64 - 1)
    array.compare_exchange(3, 0, 1)
    word._notify(1)
    wakeup = Wakeup()
    wakeup.wake()
    wakeup.wait(0, [(word, 5), (word, 6)])
    memory = memoryview(mapping.lease(10, 4000, True))
    mapping.rebase(2 * size)
    for bad in ((size, 1), (-1, 1)):
        try:
            mapping.read(*bad)
        except ValueError:
            pass
    try:
        Mapping(10**6, size, size, FLAGS)
    except OSError:
        pass
    mapping.close()
    bytes(memory)

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))

def measure():
    gc.collect()
    with open("/proc/self/maps") as maps:
        lines = sum(1 for _ in maps)
    return status("VmRSS:"), lines, len(os.listdir("/proc/self/fd")), len(gc.get_objects())

for _ in range(2000):
    turn()
before = measure()
for _ in range(10000):
    turn()
after = measure()
print(before, after)
assert after[0] - before[0] < 1024, "resident memory grew"
assert after[1] - before[1] <= 4, "mappings were left"
assert after[2] == before[2], "descriptors were left"
assert after[3] - before[3] < 50, "objects were left"
"""


@pytest.mark.slow
def test_ten_thousand_turns_leave_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * 65536))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stdout + done.stderr
