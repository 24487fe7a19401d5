"""Taking the threads of a hub away, so that a test decides when a job begins."""

from __future__ import annotations

from contextlib import contextmanager

from tests.support.internals import engine, pool_of
from tests.support.waiting import until


@contextmanager
def held(workers, *limiters):
    """Take every token of some limiters, so that no job of theirs begins in the block."""
    taken = [limiter for limiter in limiters for _ in range(limiter.total_tokens)]
    assert all(limiter.take() for limiter in taken)
    try:
        yield
    finally:
        for limiter in taken:
            limiter.give()


@contextmanager
def engine_held(workers):
    """Let no read of a hub begin in the engine; yield a function that counts waiting reads."""
    pool, hub, readers = pool_of(workers), id(workers), workers._readers
    place = pool.queue(hub, 0, 0)
    workers._readers = 0  # for files that have no place yet
    try:
        yield lambda: pool.in_flight
    finally:
        workers._readers = readers
        pool.queue(hub, engine.NO_LIMIT if readers is None else readers, 0)
        del place


async def until_queued(limiter):
    """Let other tasks run until a job waits for a token."""
    await until(lambda: limiter.queued)
