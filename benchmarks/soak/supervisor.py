"""Runs the cast in rounds, prints the progress, and gives the verdict."""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace

import anyio
import anyio.to_thread

import aiommap
from aiommap._runtime import threads as _threads

from .cast import CAST, Actor
from .leaks import Footprint, footprint, leaks, wait_for_threads
from .outsider import Outsider
from .spoiling import take_hostages
from .stage import PATIENCE_SECONDS, BrokenOracleError, Scene
from .stalls import BEAT_SECONDS, StallWatch

LOOPS = ("asyncio", "uvloop", "trio")
#: For each actor, and for leaks: so that one that fails all the time does not hide the others.
MAX_FAILURES_SHOWN = 20
LONGEST_ROUND_SECONDS = 30.0
PROGRESS_SECONDS = 10.0
SCENE_SECONDS = 2 * PATIENCE_SECONDS


@dataclass
class Soak:
    """One run of the soak."""

    seconds: float
    seed: int
    folder: str
    sabotage: frozenset[str] = frozenset()
    loops: tuple[str, ...] = LOOPS
    cast: tuple[Actor, ...] = CAST
    #: How often each actor failed, and how many things each round left behind.
    failures: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    stall: float = 0.0
    stalled_at: str = ""
    idle_stall: float = 0.0
    began: float = field(default_factory=time.monotonic)
    #: The objects that sabotage keeps alive.
    hostages: dict[str, object] = field(default_factory=dict)

    def run(self) -> int:
        """Run all rounds, and return the exit status."""
        say(f"soak: seed {self.seed}, {self.seconds:g} s, loops {', '.join(self.loops)}")
        cycles = max(1, math.ceil(self.seconds / LONGEST_ROUND_SECONDS / len(self.loops)))
        rounds = cycles * len(self.loops)
        _threads.IDLE_SECONDS = 0.2  # so that threads come and go all the time
        for loop in self.loops:  # so that they make what they keep for good, as libuv does a pipe
            self._run_in(loop, self._warm_up)
        before = footprint(self.folder)
        first: dict[str, Footprint] = {}
        for number in range(rounds):
            loop, last = self.loops[number % len(self.loops)], number + 1 == rounds
            self._round(number, loop, self.seconds / rounds)
            if last:
                wait_for_threads(before.threads)
            after = footprint(self.folder)
            self._tell(f"round {number + 1} of {rounds}, {loop}: {after.line()}")
            for leak in leaks(before, first.setdefault(loop, after), after, threads=last):
                self.fail(f"after round {number + 1}, {loop}", leak)
        return self._verdict()

    def fail(self, where: str, what: str) -> None:
        """Note a failure, and show it at once."""
        self.failures[where] += 1
        if self.failures[where] <= MAX_FAILURES_SHOWN:
            say(f"FAILED {where}: {what}")

    def _round(self, number: int, loop: str, seconds: float) -> None:
        folder = os.path.join(self.folder, str(number))
        os.mkdir(folder)
        self._run_in(loop, self._play, number, folder, seconds)
        shutil.rmtree(folder)

    @staticmethod
    def _run_in(loop: str, function: Callable[..., Awaitable[None]], *arguments: object) -> None:
        backend = "trio" if loop == "trio" else "asyncio"
        options = {} if loop == "trio" else {"use_uvloop": loop == "uvloop"}
        anyio.run(function, *arguments, backend=backend, backend_options=options)

    @staticmethod
    async def _warm_up() -> None:
        outsider = await Outsider.start()
        await outsider.stop()

    async def _play(self, number: int, folder: str, seconds: float) -> None:
        idle, *outsiders = [await Outsider.start() for _ in (None, *self.cast)]
        async with anyio.create_task_group() as threads:  # now: starting a thread stalls the loop
            for _ in self.cast:
                threads.start_soon(anyio.to_thread.run_sync, time.sleep, 0.1)
        end = anyio.current_time() + seconds
        with StallWatch() as stalls:
            async with anyio.create_task_group() as watch:
                watch.start_soon(stalls.beat)
                watch.start_soon(self._progress)
                watch.start_soon(self._compare_stalls, idle, seconds)
                async with aiommap.Hub() as hub, anyio.create_task_group() as actors:
                    for actor, outsider in zip(self.cast, outsiders, strict=True):
                        rng = random.Random(f"{self.seed} {number} {actor.__name__}")
                        own = os.path.join(folder, actor.__name__)
                        role = Scene(own, hub, rng, outsider, self.counts, self.sabotage)
                        actors.start_soon(self._perform, actor, role, end)
                    self.hostages = self.hostages or take_hostages(self.sabotage, self.folder, hub)
                watch.cancel_scope.cancel()
        for outsider in (idle, *outsiders):
            await outsider.stop()
        if stalls.worst > self.stall:
            self.stall, self.stalled_at = stalls.worst, stalls.where

    async def _perform(self, actor: Actor, role: Scene, end: float) -> None:
        """Play scenes of one actor, each in a folder of its own, until the round ends."""
        for number in itertools.count():
            scene = replace(role, folder=os.path.join(role.folder, str(number)))
            await anyio.to_thread.run_sync(os.makedirs, scene.folder)
            await self._scene(actor, scene)
            await anyio.to_thread.run_sync(shutil.rmtree, scene.folder)
            if anyio.current_time() >= end:
                return

    async def _scene(self, actor: Actor, scene: Scene) -> None:
        self.counts["scenes"] += 1
        try:
            with anyio.fail_after(SCENE_SECONDS):
                await actor(scene)
        except Exception as error:
            self.fail(actor.__name__, describe(error))

    async def _compare_stalls(self, idle: Outsider, seconds: float) -> None:
        """Let another process measure how late the machine itself makes a wake-up."""
        late = await idle.do("beat", seconds, BEAT_SECONDS)
        self.idle_stall = max(self.idle_stall, late)

    async def _progress(self) -> None:
        while True:
            await anyio.sleep(PROGRESS_SECONDS)
            self._tell(brief(self.counts))

    def _tell(self, what: str) -> None:
        say(f"{time.monotonic() - self.began:7.1f} s  {self.failures.total()} failed  {what}")

    def _verdict(self) -> int:
        for name, count in sorted(self.counts.items()):
            say(f"{count:>14,} {name}")
        say(f"{self.stall * 1e3:>14.1f} ms worst stall of the loop: {self.stalled_at}")
        say(f"{self.idle_stall * 1e3:>14.1f} ms worst stall of a process with nothing to do")
        for where, count in self.failures.items():
            if count > MAX_FAILURES_SHOWN:
                say(f"{count:>14,} failures of {where}; the first {MAX_FAILURES_SHOWN} are shown")
        say(f"{self.failures.total():>14,} failures, seed {self.seed}")
        return 1 if self.failures else 0


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def brief(counts: Counter[str]) -> str:
    """Write the main counts in a line."""
    names = ("scenes", "reads", "acknowledged bytes", "truncations", "replacements", "cancelled")
    return "  ".join(f"{counts[name]:,} {name}" for name in names)


def describe(error: BaseException) -> str:
    """Describe failures of oracles in a line, and any other exception with its traceback."""
    found = list(leaves(error))
    if all(isinstance(leaf, BrokenOracleError) for leaf in found):
        return "; ".join(map(str, found))
    return "".join(traceback.format_exception(error)).rstrip()


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions of a group, and of the groups in it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
