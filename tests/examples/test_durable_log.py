"""The durable log: appends that share commits, and what recovery makes of any end of the file."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess

import anyio
import anyio.lowlevel
import pytest

import aiommap
from tests.support.example_scripts import EXAMPLES, load
from tests.support.strict import PYTHON
from tests.support.waiting import until

SCRIPT = EXAMPLES / "durable_log.py"
STEP = 16 << 10


example = load(SCRIPT)
DurableLog, LogError = example.DurableLog, example.LogError


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Let a log grow often and cost little, and commit no more than sixteen records at once."""
    monkeypatch.setattr(example, "STEP_BYTES", STEP)
    monkeypatch.setattr(example, "MAX_BATCH", 16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log"


async def contents(log):
    return [record.data async for record in log.records()]


async def recovered(path):
    """Open a log and return what it holds."""
    async with DurableLog.open(path) as log:
        found = await contents(log)
        assert len(log) == len(found)
        return found


async def appended(path, *data):
    """Append one record after the other, each in a commit of its own."""
    async with DurableLog.open(path) as log:
        for each in data:
            await log.append(each)


async def append_together(log, *data):
    """Append in one commit."""
    flushes = log._file.statistics().flushes
    async with anyio.create_task_group() as group:
        for each in data:
            group.start_soon(log.append, each)
    assert log._file.statistics().flushes == flushes + 1


def written(path, *data):
    """Return the bytes of a log, without the zeros behind its end, and where records begin."""
    anyio.run(appended, path, *data)
    places = [len(example.SIGNATURE)]
    for each in data:
        places.append(places[-1] + example.HEADER.size + len(each))
    return path.read_bytes()[: places[-1]], places


async def submit(group, log, data):
    """Start to append, and wait until the call was made: trio starts tasks in any order."""
    before = len(log) + len(log._batch) + len(log._waiting)
    group.start_soon(log.append, data)
    await until(lambda: len(log) + len(log._batch) + len(log._waiting) > before)


@pytest.mark.anyio
class TestAppending:
    async def test_append_shares_commits_in_order(self, path):
        numbers = {}

        async def appender(name):
            for i in range(25):
                numbers[name, i] = await log.append(b"%d %d" % (name, i))

        async with DurableLog.open(path) as log:
            before = log._file.statistics().flushes
            async with anyio.create_task_group() as group:
                for name in range(40):
                    group.start_soon(appender, name)
            commits = log._file.statistics().flushes - before
            found = await contents(log)
        assert sorted(numbers.values()) == list(range(1000))
        for (name, i), number in numbers.items():
            assert found[number] == b"%d %d" % (name, i)
        assert [numbers[0, i] for i in range(25)] == sorted(numbers[0, i] for i in range(25))
        assert commits < 200
        assert await recovered(path) == found

    async def test_append_order_is_that_of_calls(self, path):
        async with DurableLog.open(path) as log:
            async with anyio.create_task_group() as group:
                for i in range(200):
                    await submit(group, log, b"%d" % i)
            assert await contents(log) == [b"%d" % i for i in range(200)]

    async def test_commit_takes_bounded_records(self, path):
        async with DurableLog.open(path) as log:
            before = log._file.statistics().flushes
            async with anyio.create_task_group() as group:
                for i in range(64):
                    group.start_soon(log.append, b"%d" % i)
            assert log._file.statistics().flushes == before + 4

    async def test_append_returns_once_durable(self, path):
        async with DurableLog.open(path) as log:
            for i in range(20):
                flushes = log._file.statistics().flushes
                assert await log.append(b"x" * i) == i
                found = log._file.statistics()
                assert (found.dirty_bytes, found.flushes > flushes) == (0, True)

    async def test_append_of_empty_and_large_records(self, path):
        data = [b"", os.urandom(3 * STEP), b"", os.urandom(example.MAX_RECORD_BYTES)]
        await appended(path, *data)
        assert await recovered(path) == data
        async with DurableLog.open(path) as log:
            with pytest.raises(ValueError, match="1048577 bytes: the limit is 1048576"):
                await log.append(bytes(example.MAX_RECORD_BYTES + 1))

    async def test_append_grows_with_all_blocks(self, path):
        async with DurableLog.open(path) as log:
            capacity = log._file.capacity
            async with anyio.create_task_group() as group:
                for _ in range(40):
                    group.start_soon(log.append, b"x" * 1000)
            assert log._file.capacity == capacity
            assert log._file.size == 3 * STEP
            assert path.stat().st_blocks * 512 >= 3 * STEP

    async def test_read_sees_records_appended_meanwhile(self, path):
        async with DurableLog.open(path) as log:
            await log.append(b"0")
            found = []
            async for record in log.records():
                assert record.sequence == len(found)
                found.append(record.data)
                if len(found) < 5:
                    await log.append(b"%d" % len(found))
            assert found == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.anyio
class TestCancellation:
    async def test_append_that_waits_is_withdrawn(self, path):
        async with DurableLog.open(path) as log, anyio.create_task_group() as group:
            group.start_soon(log.append, b"first")
            await until(lambda: log._batch)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(log.append, b"never")
                    await until(lambda: log._waiting)
                    scope.cancel()
            group.start_soon(log.append, b"second")
        assert await recovered(path) == [b"first", b"second"]

    async def test_append_cancelled_leader_leaves_no_hole(self, path):
        async with DurableLog.open(path) as log, anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as leading:
                    leading.start_soon(log.append, b"leader")
                    await until(lambda: log._committed)
                    for i in range(5):
                        group.start_soon(log.append, b"%d" % i)
                    await until(lambda: log._batch)
                    scope.cancel()
        found = await recovered(path)
        assert sorted(found) == [b"0", b"1", b"2", b"3", b"4", b"leader"]

    async def test_append_batch_nobody_waits_for(self, path):
        async with DurableLog.open(path) as log:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    for i in range(3):
                        group.start_soon(log.append, b"%d" % i)
                    await until(lambda: log._batch)
                    scope.cancel()
            assert await log.append(b"x") == 3
        found = await recovered(path)
        assert (sorted(found[:3]), found[3:]) == ([b"0", b"1", b"2"], [b"x"])

    async def test_append_cancelled_at_any_moment(self, path):
        draw = random.Random(1)
        acknowledged = {}

        async def append(data, turns):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    if turns is not None:
                        group.start_soon(cancel_after, turns, scope)
                    acknowledged[data] = await log.append(data)
                    scope.cancel()

        async with DurableLog.open(path) as log:
            for round_ in range(40):
                async with anyio.create_task_group() as group:
                    for i in range(12):
                        turns = draw.randrange(40) if i % 2 else None
                        group.start_soon(append, b"%d %d" % (round_, i), turns)
        assert len(acknowledged) >= 240
        check(await recovered(path), acknowledged)


async def cancel_after(turns, scope):
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


def check(found, acknowledged):
    """Everything acknowledged is at its place, and nothing is there twice."""
    assert len(found) == len(set(found))
    for data, number in acknowledged.items():
        assert found[number] == data


def test_append_cancelled_by_asyncio(path):
    """From Task.cancel no scope shields: the leader's write is withdrawn, or it is not told."""
    acknowledged = {}

    async def append(log, data):
        acknowledged[data] = await log.append(data)

    async def main():
        draw = random.Random(2)
        async with DurableLog.open(path) as log:
            for round_ in range(60):
                tasks = [asyncio.create_task(append(log, b"%d %d" % (round_, i))) for i in range(8)]
                for _ in range(draw.randrange(40)):
                    await asyncio.sleep(0)
                for task in draw.sample(tasks, 4):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return await recovered(path)

    found = asyncio.run(main())
    assert len(acknowledged) >= 240
    check(found, acknowledged)


@pytest.mark.anyio
class TestFailing:
    async def test_commit_failure_ends_the_log(self, path):
        failures = []

        async def append(log):
            with pytest.raises(LogError, match="a commit failed") as caught:
                await log.append(b"lost")
            failures.append(caught.value.__cause__)

        async def use():
            async with DurableLog.open(path) as log:
                await log.append(b"kept")
                path.unlink()
                async with anyio.create_task_group() as group:
                    for _ in range(5):
                        group.start_soon(append, log)
                await append(log)

        path.touch()
        with path.open("rb") as kept:
            with pytest.raises(aiommap.FlushError, match="orphaned"):
                await use()
            path.write_bytes(kept.read())
        assert len(failures) == 6
        assert all(isinstance(cause, aiommap.FlushError) for cause in failures)
        assert (await recovered(path))[0] == b"kept"

    async def test_closed_log_takes_nothing(self, path):
        async with DurableLog.open(path) as log:
            pass
        with pytest.raises(LogError) as caught:
            await log.append(b"late")
        assert isinstance(caught.value.__cause__, anyio.ClosedResourceError)

    async def test_read_finds_damage_after_opening(self, path):
        async with DurableLog.open(path) as log:
            await log.append(b"good")
            await log.append(b"bad")
            place = path.read_bytes().index(b"bad")
            with path.open("r+b") as file:
                file.seek(place)
                file.write(b"BAD")
            with pytest.raises(LogError, match=f"the record at {place - 28} is damaged"):
                await contents(log)


class TestRecovery:
    DATA = (b"alpha", b"", b"gamma", b"the last but one", b"the last")

    @pytest.mark.parametrize("zeros", [0, STEP], ids=["short", "zeros-behind"])
    @pytest.mark.slow
    def test_recover_after_a_cut_in_last_records(self, path, zeros):
        whole, places = written(path, *self.DATA)

        async def main():
            for cut in range(places[3], places[5] + 1):
                path.write_bytes(whole[:cut] + bytes(zeros))
                kept = [*self.DATA[:3], *self.DATA[3 : 3 + sum(p <= cut for p in places[4:])]]
                assert await recovered(path) == kept, cut
                await appended(path, b"next")
                assert await recovered(path) == [*kept, b"next"], cut

        anyio.run(main)

    @pytest.mark.slow
    def test_recover_finds_any_flipped_bit(self, path):
        """Damage is refused and nothing is changed; only the last record may have been torn."""
        whole, places = written(path, *self.DATA)

        async def main():
            for at in range(len(whole)):
                flipped = bytearray(whole)
                flipped[at] ^= 1 << at % 8
                path.write_bytes(flipped)
                if at >= places[-2]:
                    assert await recovered(path) == list(self.DATA[:-1]), at
                    continue
                with pytest.raises(
                    LogError, match="is damaged" if at >= places[0] else "not a log"
                ):
                    await recovered(path)
                assert path.read_bytes() == flipped

        anyio.run(main)

    @pytest.mark.anyio
    async def test_recover_buries_what_a_crash_left(self, path):
        """The third of four equal records is torn: the fourth must not follow its successor."""
        async with DurableLog.open(path) as log:
            await append_together(log, b"one", b"two")
            await append_together(log, b"bad", b"old")
            first, second, third, _ = await contents(log)
        torn = path.read_bytes().replace(third, third[:1] + bytes(2))
        for successor in (b"new", third):
            path.write_bytes(torn)
            await appended(path, successor)
            assert await recovered(path) == [first, second, successor]

    @pytest.mark.anyio
    async def test_recover_refuses_another_number(self, path):
        await appended(path, *self.DATA)
        whole = path.read_bytes().rstrip(b"\0")
        path.write_bytes(whole + example.encode(len(whole), 4, 4, b"stale"))
        assert await recovered(path) == list(self.DATA)

    @pytest.mark.anyio
    async def test_recover_log_within_a_torn_record(self, path, tmp_path):
        """Its records say that more is durable than there is, but they were of another place."""
        await appended(tmp_path / "other", *self.DATA)
        other = (tmp_path / "other").read_bytes().rstrip(b"\0")
        await appended(path, b"first", other + b"torn")
        path.write_bytes(path.read_bytes().replace(b"torn", bytes(4)))
        assert await recovered(path) == [b"first"]

    @pytest.mark.parametrize("before", range(5))
    @pytest.mark.anyio
    async def test_recover_finds_damage_across_borders(self, path, monkeypatch, before):
        """Only the mark of the second record, some bytes before a border, tells of the damage."""
        await appended(path, b"damaged", b"proof")
        path.write_bytes(path.read_bytes().replace(b"damaged", b"Damaged"))
        size = example.HEADER.size + len(b"damaged") + before
        monkeypatch.setattr(example, "SEARCH_BYTES", size)
        with pytest.raises(LogError, match="record 0 at 8 is damaged, and record 1 further on"):
            await recovered(path)

    @pytest.mark.anyio
    async def test_recover_makes_records_durable(self, path):
        await appended(path, *self.DATA)
        async with DurableLog.open(path) as log:
            assert log._file.statistics().flushes == 1

    @pytest.mark.parametrize("size", [0, 1, STEP])
    @pytest.mark.anyio
    async def test_open_of_empty_file_becomes_a_log(self, path, size):
        path.write_bytes(bytes(size))
        await appended(path, b"x")
        assert await recovered(path) == [b"x"]

    @pytest.mark.parametrize(
        "content",
        [b"x", b"aiomlog", bytes(STEP + 1), bytes(STEP - 1) + b"x"],
        ids=["short", "part", "zeros", "late"],
    )
    @pytest.mark.anyio
    async def test_open_of_another_file_is_refused(self, path, content):
        path.write_bytes(content)
        with pytest.raises(LogError, match="is not a log"):
            await recovered(path)
        assert path.read_bytes() == content


@pytest.mark.slow
def test_command_appends_and_recovers(path):
    command = [*PYTHON, SCRIPT, path, "--appenders", "8", "--seconds", "0.2"]
    before = 0
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=50)
        assert (done.returncode, done.stderr) == (0, "")
        match = re.fullmatch(
            r"\d+ durable appends/s by 8 tasks\n"
            r"recovered (\d+) records: (\d+) old, (\d+) acknowledged now\n",
            done.stdout,
        )
        found, old, now = map(int, match.groups())
        assert (old, found) == (before, old + now)
        assert now > 0
        before = found
