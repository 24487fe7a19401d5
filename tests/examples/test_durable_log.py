"""The example of accounts in a log: reported payments are replayed, and a follower misses none."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import anyio
import pytest

from aiommap import Log
from tests.support.example_scripts import EXAMPLES, load

SCRIPT = EXAMPLES / "durable_log.py"
example = load(SCRIPT)
Accounts = example.Accounts


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "accounts"


@pytest.mark.anyio
async def test_payments_are_replayed(folder):
    async with Accounts.open(folder) as accounts:
        for cents in (500, -200, 30):
            receipt = await accounts.pay("food", cents)
            assert receipt.durable
        assert receipt.sequence == 3
    async with Accounts.open(folder) as accounts:
        assert (accounts.balances["food"], accounts.events) == (330, 3)


@pytest.mark.anyio
async def test_overdraft_is_refused_and_not_logged(folder):
    async with Accounts.open(folder) as accounts:
        await accounts.pay("rent", 100)
        with pytest.raises(ValueError, match="rent has 100 cents, not 101"):
            await accounts.pay("rent", -101)
    async with Log.open(folder, "r") as log:
        assert log.last == 1


@pytest.mark.anyio
async def test_payments_at_once_never_overdraw(folder):
    """Check, change and append are one step: no other task runs in between."""
    async with Accounts.open(folder) as accounts:
        await accounts.pay("books", 100)
        refused = 0

        async def spend():
            nonlocal refused
            try:
                await accounts.pay("books", -60)
            except ValueError:
                refused += 1

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(spend)
        assert (refused, accounts.balances["books"]) == (7, 40)


@pytest.mark.slow
def test_the_command_pays_and_replays(folder):
    command = [sys.executable, "-W", "error", SCRIPT, folder, "--appenders", "8"]
    before = 0
    for _ in range(2):
        done = subprocess.run(
            [*command, "--seconds", "0.2"], capture_output=True, text=True, timeout=50
        )
        assert (done.returncode, done.stderr) == (0, "")
        match = re.fullmatch(
            r"\d+ durable events/s by 8 tasks\n"
            r"replayed (\d+) events: (\d+) old, (\d+) acknowledged now\n",
            done.stdout,
        )
        found, old, now = map(int, match.groups())
        assert (old, found) == (before, old + now)
        assert now > 0
        before = found


@pytest.mark.slow
def test_a_follower_goes_on_where_it_was(folder):
    async def pay(*cents):
        async with Accounts.open(folder) as accounts:
            for each in cents:
                await accounts.pay("travel", each)

    def follow(count):
        command = [sys.executable, "-W", "error", SCRIPT, folder, "--follow"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = [process.stdout.readline() for _ in range(count)]
            process.kill()
        return [(int(line.split()[0]), json.loads(line.split(" ", 1)[1])[1]) for line in lines]

    anyio.run(pay, 1, 2, 3)
    assert follow(3) == [(1, 1), (2, 2), (3, 3)]
    anyio.run(pay, 4, 5)
    # The last event may come again: the follower was killed before it had stored its sequence.
    found = follow(2)
    assert found in ([(3, 3), (4, 4)], [(4, 4), (5, 5)])
