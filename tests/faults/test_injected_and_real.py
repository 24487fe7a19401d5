"""Faults that aiommap.testing injects give the same errors and the same state as real ones.

Each test runs the same steps twice on the same path of the same disk: first with a device that
fails or is full, then with a device that works and an injected fault. It compares the accounts.
"""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager, suppress

import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy
from aiommap.testing import failing_flush, full_disk, truncated_file
from tests.support import devices

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FAILURES = pytest.mark.parametrize("failure", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])


@pytest.fixture
def anyio_backend():
    """One loop is enough, because a device does not know which loop uses it."""
    return "asyncio"


def told(error):
    """Return everything in an error on which a program could act."""
    if error is None:
        return None
    numbers = {k: v for k, v in vars(error).items() if k != "__notes__"}
    shown = (type(error), str(error), getattr(error, "errno", None), numbers)
    return (*shown, getattr(error, "filename", None), told(error.__cause__))


async def outcome(verb):
    try:
        await verb()
    except Exception as error:
        return told(error)
    return "succeeded"


def state(f):
    """Return the state of a file, without counts that depend on the way of a verb or on time."""
    s = f.statistics()
    return {
        "size": f.size,
        "dirty": s.dirty_bytes,
        "flushes": (s.flushes, s.flush_requests, s.flushed_bytes),
        "failed": s.flush_failed,
        "closed": f.closed,
    }


async def account_of_failed_flush(f, receipt, begin):
    """Let a flush fail, then call every verb; return the outcomes and the states."""
    failures = []
    f.on_error(lambda error: failures.append(told(error)))
    account = [await outcome(begin), state(f), receipt.durable]
    for verb in (
        lambda: f.write(0, b"x"),
        lambda: f.write_many([(0, b"x")]),
        f.flush,
        lambda: f.flush_range(receipt),
        receipt.wait_durable,
        lambda: f.resize(2 * devices.PAGES * PAGE),
        lambda: f.read(0, 4),
        f.aclose,
    ):
        account += [await outcome(verb), state(f)]
    return [*account, failures]


BEGIN = {
    "flush": lambda f, receipt: f.flush,
    "flush_range": lambda f, receipt: lambda: f.flush_range(receipt),
    "wait_durable": lambda f, receipt: receipt.wait_durable,
    "aclose": lambda f, receipt: f.aclose,
}


@FAILURES
@pytest.mark.parametrize("begin", BEGIN.values(), ids=BEGIN)
async def test_failing_flush_is_like_a_real_one(disk, failure, begin):
    accounts = []
    for fault in (lambda _: disk.failing(failure), lambda f: failing_flush(f, failure)):
        async with devices.opened(disk) as f:
            with fault(f):  # before the write: another program may call sync(2) at any time
                receipt = await f.write(100 * PAGE, b"lost" * 5 * PAGE)
                account = await account_of_failed_flush(f, receipt, begin(f, receipt))
        accounts.append(account)
        os.unlink(f.path)
    assert accounts[0][0][0] is aiommap.FlushError
    assert accounts[1] == accounts[0]


@FAILURES
async def test_failing_durable_write_is_like_real(disk, failure):
    accounts = []
    for fault in (lambda _: disk.failing(failure), lambda f: failing_flush(f, failure)):
        async with devices.opened(disk, flush=FlushPolicy.always()) as f:
            receipt = await f.write(PAGE, b"fine")
            with fault(f):
                lost = await outcome(lambda f=f: f.write(100 * PAGE, b"lost"))
                account = [lost, state(f), receipt.durable, await outcome(f.aclose)]
        accounts.append(account)
        os.unlink(f.path)
    assert accounts[0][0][0] is aiommap.FlushError
    assert accounts[1] == accounts[0]


async def account_of_full_disk(path, folder_is_full, file_is_full):
    account = []
    with folder_is_full(path):
        for mode in ("x+", "w+"):
            opening = await outcome(lambda mode=mode: aiommap.open(path, mode, size=8 << 20))
            account += [opening, path.exists()]
    async with aiommap.open(path, "x+", size=PAGE) as f:
        await f.write(0, b"safe")
        with file_is_full(f):
            account += [await outcome(lambda: f.resize(8 << 20)), state(f), path.stat().st_size]
        account += [await outcome(lambda: f.resize(2 * PAGE)), state(f), await f.read(0, 4)]
    return account


@contextmanager
def as_it_is(_):
    """Do nothing: a disk of 4 MiB is too small as it is."""
    yield


async def test_full_disk_growth_is_like_a_real_one(small_disk, tmp_path):
    path = small_disk.folder / "file"
    real = await account_of_full_disk(path, as_it_is, as_it_is)
    path.unlink()
    # The same path, with plenty of room.
    subprocess.run(["umount", "--lazy", small_disk.folder], check=True)
    try:
        injected = await account_of_full_disk(path, full_disk, full_disk)
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", small_disk.folder], check=True)
    kind, text, number = real[0][:3]
    assert (kind, number) == (OSError, errno.ENOSPC)
    assert text.startswith("[Errno 28] No space left on device for the 8388608 bytes to reserve")
    assert text.endswith(f"'{path}'")
    assert injected == real


async def account_of_sparse_stores(f, is_full):
    """Store into holes, into blocks that are there, and across the border between them."""
    account = []
    with is_full(f):
        for verb in (
            lambda: f.write(4 << 20, b"x"),
            lambda: f.write(4 << 20, b"x" * PAGE * 20),
            lambda: f.write_many([(0, b"fits"), (4 << 20, b"x" * PAGE)]),
            lambda: f.write(0, b"x" * 20 * PAGE),
            lambda: f.write(0, b"still"),
        ):
            account += [await outcome(verb), await f.read(0, 20 * PAGE)]
            account += [await f.read(4 << 20, 20 * PAGE)]
    await f.write(4 << 20, b"room again")
    await f.flush()
    return [*account, f.statistics().flush_failed, await f.read(0, 8)]


@pytest.mark.parametrize("policy", [FlushPolicy.manual(), FlushPolicy.always()], ids=repr)
async def test_full_disk_sparse_store_is_like_real(small_disk, policy):
    path = small_disk.folder / "file"
    filler = small_disk.folder / "filler"

    @contextmanager
    def real(_):
        devices.fill(filler)
        yield
        filler.unlink()

    accounts = []
    for is_full in (real, full_disk):
        async with aiommap.open(path, "x+", size=8 << 20, sparse=True, flush=policy) as f:
            await f.write(0, b"safe")
            accounts.append(await account_of_sparse_stores(f, is_full))
        path.unlink()
    assert accounts[0][0][:3] == (
        OSError,
        (
            "[Errno 28] No space left on device for 1 bytes at 4194304, where the file has a hole: "
            f"make room, and repeat what was asked: '{path}'"
        ),
        errno.ENOSPC,
    )
    assert accounts[1] == accounts[0]


async def test_truncated_file_is_like_a_real_one(path, outside):
    @contextmanager
    def real(f):
        outside(f.path, 3 * PAGE + 5)
        yield

    accounts = []
    for fault in (real, lambda f: truncated_file(f, 3 * PAGE + 5)):
        path.write_bytes(bytes(16 * PAGE))
        f = await aiommap.open(path, "r+")
        await f.write(9 * PAGE, b"lost")
        with fault(f):
            verbs = (lambda f=f: f.read(3 * PAGE, PAGE), lambda f=f: f.write(9 * PAGE, b"x"))
            account = [await outcome(verb) for verb in verbs]
            account += [await outcome(f.flush), state(f)]
        with suppress(aiommap.FlushError):
            await f.aclose()
        accounts.append(account)
    assert accounts[0][0][0] is aiommap.MappingFaultError
    assert accounts[1] == accounts[0]
