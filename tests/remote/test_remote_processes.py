"""Several processes over one cache: each block is fetched once, and a crash harms no other."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading

import anyio
import pytest

from tests.support.fault_proxy import Fault, Gate, always, once
from tests.support.remote import BLOCK, content, opened, read_all
from tests.support.remote_children import children

OLD = content("old")
SMALL = {"max_bytes": 24 * BLOCK}


@pytest.fixture
def stored(nginx, request):
    key = request.node.name.replace("[", "-").replace("]", "")
    nginx.put(key, OLD)
    return key


def blocks_of(ranges):
    return sorted(block for start, end in ranges for block in range(start, end, BLOCK))


def read_by_another(folder, nginx, key, **options):
    """Read and compare the whole object in this process, with a new cache over the folder."""

    async def read():
        async with opened(folder, nginx.store(), key, **options) as (_, snapshot):
            await read_all(snapshot, OLD)

    anyio.run(read)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_each_block_is_fetched_once(tmp_path, nginx, proxy, stored, count):
    proxy.rule = always(Fault(delay=0.002))
    with children(count, tmp_path, proxy.port, stored) as started:
        proxy.forget()
        for child in started:
            child.begin()
        found = [child.result() for child in started]
    assert [result["wrong"] for result in found] == [[]] * count
    assert blocks_of(proxy.ranges) == [*range(0, len(OLD), BLOCK)]
    assert sum(result["gets"] for result in found) == len(proxy.reads)
    assert sum(result["takeovers"] for result in found) == 0


def test_second_process_fetches_nothing(tmp_path, proxy, stored):
    with children(1, tmp_path, proxy.port, stored) as (first,):
        first.begin()
        first.result()
    proxy.forget()
    with children(1, tmp_path, proxy.port, stored) as (second,):
        second.begin()
        assert second.result() == {"wrong": [], "gets": 0, "takeovers": 0}
    assert proxy.reads == []


def test_fetches_of_the_dead_are_taken_over(tmp_path, nginx, proxy, stored):
    """An owner dies during its fetch: the process that waits for the block fetches it."""
    gate = Gate()
    job = {"tasks": 1, "step": len(OLD), "cache": {"request_size": 1 << 20}}
    with children(2, tmp_path, proxy.port, stored, **job) as (owner, other):
        proxy.rule = once(Fault(gate=gate))
        owner.begin()
        assert gate.reached()
        other.begin()
        owner.process.kill()
        assert owner.killed()
        found = other.result()
        gate.open()
    assert (found["wrong"], found["takeovers"] > 0) == ([], True)
    read_by_another(tmp_path, nginx, stored)


@pytest.mark.slow
def test_stopped_owner_is_not_waited_for(tmp_path, proxy, stored):
    """Other processes do not wait for one that stands still (SIGSTOP, a debugger, swapping)."""
    gate = Gate()
    job = {"tasks": 1, "step": len(OLD), "cache": {"request_size": 1 << 20}}
    with children(2, tmp_path, proxy.port, stored, **job) as (owner, other):
        proxy.rule = once(Fault(gate=gate))
        owner.begin()
        assert gate.reached()
        os.kill(owner.process.pid, signal.SIGSTOP)
        gate.open()
        other.begin()
        assert other.result()["wrong"] == []
        os.kill(owner.process.pid, signal.SIGCONT)
        assert owner.result()["wrong"] == []


#: A command in namespaces like those of a container: its own process ids and users.
CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


def test_containers_share_a_folder(tmp_path, nginx, proxy, stored):
    """Leases are locks, so process ids do not matter: two processes with id 1 share a folder."""
    if subprocess.run([*CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare(1), and the right to use it")
    gate = Gate()
    job = {"tasks": 1, "step": len(OLD), "cache": {"request_size": 1 << 20}, "prefix": CONTAINER}
    with children(2, tmp_path, proxy.port, stored, **job) as (owner, other):
        proxy.rule = once(Fault(gate=gate))
        owner.begin()
        assert gate.reached()
        other.begin()
        owner.process.kill()
        owner.killed()
        found = other.result()
        gate.open()
    assert (found["wrong"], found["takeovers"] > 0) == ([], True)
    proxy.forget()
    read_by_another(tmp_path, nginx, stored)


def kill_at(proxy, child, requests, seconds):
    """Kill a child ``seconds`` after the proxy has seen ``requests`` requests."""
    due = threading.Event()

    def rule(_):
        if len(proxy.seen) >= requests:
            due.set()
        return Fault(delay=0.001)

    proxy.rule = rule
    due.wait(20)
    threading.Event().wait(seconds)
    child.process.kill()


MOMENTS = [pytest.param(seed, marks=[] if seed < 3 else pytest.mark.slow) for seed in range(40)]
KINDS = {
    "filling": {},
    "evicting": {"cache": SMALL, "rounds": 2},
    "verifying": {"rounds": 2, "verifies": True},
}


@pytest.mark.parametrize("seed", MOMENTS)
def test_kill_at_random_moments(tmp_path, nginx, proxy, stored, seed):
    """One of two processes is killed while it fills, evicts or verifies; none reads wrong bytes."""
    drawn = random.Random(seed)
    kind = [*KINDS][seed % len(KINDS)]
    job = KINDS[kind]
    with children(2, tmp_path, proxy.port, stored, **job) as (victim, other):
        proxy.forget()
        victim.begin()
        other.begin()
        kill_at(proxy, victim, drawn.randrange(1, 30), drawn.random() * 0.01)
        assert other.result()["wrong"] == []
        victim.killed()
    read_by_another(tmp_path, nginx, stored, cache=job.get("cache"))


@pytest.mark.slow
def test_readers_beside_evictors_and_views(tmp_path, nginx, stored):
    """Four processes evict from a cache that holds a third of the object; our views stay intact."""

    async def hold_views():
        async with opened(tmp_path, nginx.store(), stored, cache=SMALL) as (_, snapshot):
            views = [await snapshot.view(at * BLOCK, 2 * BLOCK) for at in (0, 20, 40)]
            with children(4, tmp_path, nginx.port, stored, cache=SMALL, rounds=6) as started:
                for child in started:
                    child.begin()
                for child in started:
                    found = await anyio.to_thread.run_sync(child.result)
                    assert found["wrong"] == []
                    for view in views:
                        at = view.offset
                        assert bytes(view.memory) == OLD[at : at + 2 * BLOCK]

    anyio.run(hold_views)
