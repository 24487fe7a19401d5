"""Taking the threads of a hub away, so that a test decides when a job begins."""

from __future__ import annotations

from contextlib import contextmanager

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
            workers.release(limiter)


async def until_queued(limiter):
    """Let other tasks run until a job waits for a token."""
    await until(lambda: limiter.queued)
