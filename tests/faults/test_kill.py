"""kill -9 at random moments: acknowledged writes are in the file, whatever the policy.

After a process crash the kernel keeps the page cache. So this proves order and accounting: a write
is acknowledged only after it was stored. ``tests/powercut`` is about power cuts.
"""

from __future__ import annotations

import json
import random
import subprocess

import anyio
import pytest

from aiommap import Log
from tests.faults import kill_writers
from tests.faults.kill_writers import POLICIES, RECORDS, SEGMENT, WRITERS, content
from tests.support.strict import PYTHON

pytestmark = pytest.mark.slow

RUNS_EACH = 24
LOGS, LIVES = 8, 7
assert RUNS_EACH * (len(POLICIES) + 1) + LOGS * LIVES == 224

#: The lines of a writer. A few runs end while it opens the file, and none after its last line.
LINES = 2 + WRITERS * RECORDS


@pytest.fixture(scope="module")
def kill():
    """Return a function that runs and kills a writer, and returns what it acknowledged."""
    command = [*PYTHON, kill_writers.__file__]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kill(what, path, seed, draw):
        patience = draw.randrange(1, draw.choice([3, 20, LINES, LINES]))
        run = [what, str(path), seed, patience, draw.uniform(0, 0.003)]
        print(json.dumps(run), file=server.stdin, flush=True)
        answer = json.loads(server.stdout.readline())
        assert answer["killed"], "the writer ended by itself: see its traceback"
        assert len(answer["acknowledged"]) >= patience - 2
        return answer["acknowledged"]

    with server:
        yield kill


@pytest.mark.parametrize("policy", [*POLICIES, "append"])
def test_kill_keeps_acknowledged_writes(kill, tmp_path, policy):
    draw = random.Random(policy)
    for number in range(RUNS_EACH):
        path, seed = tmp_path / str(number), draw.getrandbits(32)
        acknowledged = kill(policy, path, seed, draw)
        found = path.read_bytes() if acknowledged else b""
        for writer, index, place in acknowledged:
            data = content(seed, writer, index)
            assert found[place : place + len(data)] == data, (seed, writer, index)


@pytest.mark.parametrize("number", range(LOGS))
def test_kill_keeps_acknowledged_log_records(kill, tmp_path, number):
    """Each life begins with a recovery; the test checks the records after every second life."""
    draw, path = random.Random(number), tmp_path / "log"
    acknowledged, seeds = {}, []
    for life in range(LIVES):
        seeds.append(draw.getrandbits(32))
        for writer, index, sequence in kill("log", path, seeds[-1], draw):
            acknowledged[sequence] = content(seeds[-1], writer, index)
        if life % 2 == 0:
            records = anyio.run(recovered, path)
            for sequence, data in acknowledged.items():
                assert records[sequence - 1] == data, (seeds, sequence)
            assert_submitted(records, seeds)


def assert_submitted(records, seeds):
    """Check that each record was submitted, comes once, and that each writer's are in order."""
    numbers = [tuple(map(int, record.split(b" ", 3)[:3])) for record in records]
    for seed_writer_index, record in zip(numbers, records, strict=True):
        assert record == content(*seed_writer_index)
    for seed in seeds:
        for writer in range(WRITERS):
            mine = [index for s, w, index in numbers if (s, w) == (seed, writer)]
            assert mine == list(range(len(mine)))


async def recovered(path):
    async with Log.open(path, segment_size=SEGMENT) as log:
        return [record.data async for record in log.read()]
