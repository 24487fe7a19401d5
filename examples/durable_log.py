"""Accounts kept in a durable log, and a second process that follows them.

In ``python examples/durable_log.py FOLDER`` many tasks pay money in and out. Each change is durable
before the program reports it. Then the program starts again from the log and compares.
``python examples/durable_log.py FOLDER --follow`` follows the log in another process. It goes on
when the first process is killed and started again, and remembers how far it came.

Theory of operation. The log is the truth, and the balances in memory are the sum of its events.
``pay`` checks a change against the balances, applies the change to them and appends it to the log,
without an ``await`` between check and append. So the log has the events in the order of the checks.
``pay`` returns when the event is durable: after a power cut every reported payment is there. If
appending fails, the balances have a change that the log lacks; then start again from the log.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

import anyio

import aiommap
from aiommap import FlushPolicy, Log, LogReceipt, LogRecord

ACCOUNTS = ("rent", "food", "books", "travel")


class Accounts:
    """Balances that survive a power cut; made by ``Accounts.open``."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.balances: Counter[str] = Counter()
        self.events = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: str) -> AsyncIterator[Self]:
        """Open the log, which recovers it after a crash, and replay it."""
        async with Log.open(folder, flush=FlushPolicy.always()) as log:
            accounts = cls(log)
            async for record in log.read():
                accounts.apply(record)
            yield accounts

    def apply(self, record: LogRecord) -> None:
        """Add one event of the log to the balances."""
        account, cents = json.loads(record.data)
        self.balances[account] += cents
        self.events += 1

    async def pay(self, account: str, cents: int) -> LogReceipt:
        """Pay cents in, or out if they are negative; the payment is durable when this returns.

        Raises:
            ValueError: if the account does not have so much.
        """
        if self.balances[account] + cents < 0:
            raise ValueError(f"{account} has {self.balances[account]} cents, not {-cents}")
        self.balances[account] += cents
        self.events += 1
        return await self._log.append(json.dumps([account, cents]).encode())


async def follow(folder: str, place: str) -> AsyncIterator[LogRecord]:
    """Yield durable events for ever, from where an earlier follower stopped.

    A file keeps how far the follower came. The follower stores that after the caller has handled an
    event. So after a crash it may yield an event twice, but never misses one.
    """
    async with aiommap.open(place, "r+", flush=FlushPolicy.manual()) as f:
        done = f.atomic_u64(0)
        async with Log.open(folder, "r") as log:
            start = max(done.load() + 1, 1)
            while True:
                try:
                    async for record in log.tail(start, durable=True):
                        yield record
                        done.store(record.sequence)
                except aiommap.RecordsDiscardedError as error:
                    print(f"{error.lost} events were discarded before they were seen")
                    start = error.first


async def run(folder: str, appenders: int, seconds: float) -> None:
    """Make payments for a while, then start again from the log and compare."""
    told = 0

    async def appender(number: int, until: float) -> None:
        nonlocal told
        rng = random.Random(number)
        while anyio.current_time() < until:
            try:
                await accounts.pay(rng.choice(ACCOUNTS), rng.randint(-500, 1000))
                told += 1
            except ValueError:
                continue

    async with Accounts.open(folder) as accounts:
        before = accounts.events
        start = anyio.current_time()
        async with anyio.create_task_group() as group:
            for number in range(appenders):
                group.start_soon(appender, number, start + seconds)
        rate = told / (anyio.current_time() - start)
        balances = accounts.balances
    print(f"{rate:.0f} durable events/s by {appenders} tasks")
    async with Accounts.open(folder) as accounts:
        print(f"replayed {accounts.events} events: {before} old, {told} acknowledged now")
        if (accounts.balances, accounts.events) != (balances, before + told):
            raise SystemExit("what was replayed is not what was acknowledged")


async def print_events(folder: str) -> None:
    """Follow, and print each event."""
    place = os.path.join(folder, "follower")
    with suppress(FileExistsError):
        await (await aiommap.open(place, "x+", size=8)).aclose()
    async for record in follow(folder, place):
        print(record.sequence, record.data.decode(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep accounts in a durable log.")
    parser.add_argument("folder")
    parser.add_argument("--follow", action="store_true", help="follow instead, until Ctrl-C")
    parser.add_argument("--appenders", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    if options.follow:
        anyio.run(print_events, options.folder)
    else:
        anyio.run(run, options.folder, options.appenders, options.seconds)


if __name__ == "__main__":
    main()
