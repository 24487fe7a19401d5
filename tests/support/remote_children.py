"""Processes that read a remote object through a shared cache, and may be killed meanwhile.

Run as a script, this module is such a process. It prints ``ready``, begins when it gets a line on
its standard input, compares all bytes that it reads with the object, and ends with a line of JSON.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import contextmanager

import anyio

from tests.support.remote import BLOCK, content, opened
from tests.support.strict import PYTHON


class Child:
    """One process; ``begin`` lets it go, ``result`` waits for its end."""

    def __init__(self, folder, port, key, *, prefix=(), **job):
        job = {"folder": str(folder), "port": port, "key": key, "version": "old", **job}
        self.process = subprocess.Popen(
            [*prefix, *PYTHON, "-m", "tests.support.remote_children", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self):
        line = self.process.stdout.readline()
        assert line == "ready\n", line + self.process.stderr.read()

    def begin(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self, seconds=50):
        out, err = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, out + err
        return json.loads(out)

    def killed(self):
        """Wait until a child that was sent SIGKILL ends; tell whether the signal ended it."""
        self.process.communicate(timeout=150)
        return self.process.returncode == -9


@contextmanager
def children(count, folder, port, key, **job):
    """Start children that all wait for ``begin``, and kill those that are left at the end."""
    made = [Child(folder, port, key, seed=seed, **job) for seed in range(count)]
    try:
        for child in made:
            child.wait_ready()
        yield made
    finally:
        for child in made:
            child.process.kill()
            child.process.wait(20)
            for stream in (child.process.stdin, child.process.stdout, child.process.stderr):
                stream.close()


async def _read(job):
    from tests.support.remote_servers import Nginx

    expected = content(job["version"])
    drawn = random.Random(job["seed"])
    store = Nginx.store_at(job["port"])
    cache = job.get("cache", {})
    async with opened(job["folder"], store, job["key"], cache=cache, read_ahead=False) as (
        made,
        snapshot,
    ):
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        wrong = []

        async def some(starts):
            for start in starts:
                end = min(start + job.get("step", BLOCK), len(expected))
                if await snapshot.read_exact(start, end - start) != expected[start:end]:
                    wrong.append(start)

        for _ in range(job.get("rounds", 1)):
            starts = [*range(0, len(expected), job.get("step", BLOCK))]
            drawn.shuffle(starts)
            async with anyio.create_task_group() as group:
                for task in range(job.get("tasks", 8)):
                    group.start_soon(some, starts[task :: job.get("tasks", 8)])
            if job.get("verifies"):
                await made.verify()
        counted = made.statistics()
        print(json.dumps({"wrong": wrong, "gets": counted.gets, "takeovers": counted.takeovers}))


if __name__ == "__main__":
    anyio.run(_read, json.loads(sys.argv[1]))
