"""Faults of networks and servers: a read gets the right bytes or an error, never other bytes.

After each fault that ends, a read has to succeed: in the cache that met the fault, and in the next
cache over the same folder (the first of the complaints in docs/remote).
"""

from __future__ import annotations

import functools
import os

import anyio
import obstore
import pytest

import aiommap
from aiommap.remote import ObstoreSource, RemoteCache, RemoteError
from tests.support.fault_proxy import Fault, Gate, always, cut, each, etag, nothing, once
from tests.support.remote import BLOCK, content, opened, outcomes, read_all

pytestmark = pytest.mark.anyio

OLD, NEW = content("old"), content("new")
HURRIED = {"timeout": "0.5s", "read_timeout": "0.2s"}


@pytest.fixture
def stored(nginx, request):
    """Key of the object that a test reads; each test has its own."""
    key = request.node.name.replace("[", "-").replace("]", "")
    nginx.put(key, OLD)
    return key


@pytest.fixture
def through(tmp_path, nginx, proxy, stored):
    """A function that opens the object of this test through the proxy."""

    def open_it(client=None, **options):
        store = nginx.store(proxy.port, **(client or {}))
        return opened(tmp_path / "cache", store, stored, read_ahead=False, **options)

    return open_it


class TestPassing:
    """Faults that the engine's retries outlast."""

    @pytest.mark.parametrize("reset", [True, False], ids=["reset", "fin"])
    async def test_break_in_mid_body(self, through, proxy, reset):
        async with through() as (_, snapshot):
            proxy.rule = once(cut(1000, reset=reset), times=2)
            await read_all(snapshot, OLD)

    @pytest.mark.parametrize("status", [429, 503])
    async def test_storm(self, through, proxy, status):
        async with through() as (_, snapshot):
            proxy.rule = once(Fault(status=status), times=3)
            await read_all(snapshot, OLD)

    async def test_latency(self, through, proxy):
        async with through() as (_, snapshot):
            proxy.rule = always(Fault(delay=0.03))
            await read_all(snapshot, OLD, step=16 * BLOCK)


#: Faults that last, so that a read has to raise.
LASTING = {
    "reset": cut(1000),
    "fin": cut(1000, reset=False),
    "no-body": cut(0),
    "truncated-no-length": Fault(no_length=True, cut_after=1000),
    "503": Fault(status=503),
    "429": Fault(status=429),
    "500": Fault(status=500),
    "range-ignored": Fault(ignore=("range",)),
    "wrong-range": Fault(headers={"content-range": f"bytes 1-{BLOCK}/{len(OLD)}"}),
    "wrong-total": Fault(headers={"content-range": f"bytes 0-{BLOCK - 1}/99999999"}),
    "no-range": Fault(headers={"content-range": None}),
    "no-etag": etag(None),
    "weak-etag": etag('W/"weak"'),
    "other-etag": etag('"other"'),
}


class TestLasting:
    """Faults that last are errors, and leave no wrong bytes in the cache."""

    @pytest.mark.parametrize("fault", LASTING.values(), ids=LASTING)
    async def test_read_fails_then_succeeds(self, through, proxy, fault):
        errors = (RemoteError, aiommap.StaleSnapshotError, aiommap.UnsupportedError)
        async with through() as (_, snapshot):
            proxy.rule = always(fault)
            found = await outcomes(snapshot, OLD, errors)
            assert None not in found
            proxy.rule = nothing
            if not isinstance(found[0], aiommap.StaleSnapshotError):
                await read_all(snapshot, OLD)
        proxy.rule = nothing
        async with through() as (_, snapshot):
            await read_all(snapshot, OLD)

    async def test_error_tells_what_and_where(self, through, proxy, stored):
        async with through() as (_, snapshot):
            proxy.rule = always(Fault(status=503))
            with pytest.raises(RemoteError) as caught:
                await snapshot.read_exact(3 * BLOCK, 10)
        error = caught.value
        assert isinstance(error, OSError)
        assert isinstance(error, aiommap.MappedFileError)
        assert stored in error.url
        assert error.offset <= 3 * BLOCK
        assert error.offset + error.length > 3 * BLOCK + 9
        assert stored in str(error)

    async def test_server_gone_for_one_read(self, tmp_path, nginx, proxy, stored):
        """After such a failure, fsspec's own cache returns zeros for good."""
        proxy.rule = nothing
        errors = (RemoteError,)
        async with opened(tmp_path, nginx.store(proxy.port), stored) as (_, snapshot):
            await snapshot.read_exact(0, 10)
            upstream, proxy.upstream = proxy.upstream, 1  # nobody listens there
            found = await outcomes(snapshot, OLD, errors, step=16 * BLOCK)
            assert any(found)
            proxy.upstream = upstream
            await outcomes(snapshot, OLD, errors)  # some requests of that read still fail
            await read_all(snapshot, OLD)
        async with opened(tmp_path, nginx.store(proxy.port), stored) as (_, snapshot):
            await read_all(snapshot, OLD)

    @pytest.mark.parametrize(
        "fault", [Fault(stall_after=0), Fault(stall_after=1000), Fault(trickle=0.05)], ids=repr
    )
    @pytest.mark.slow
    async def test_slowness_is_an_error(self, through, proxy, fault):
        async with through(HURRIED) as (_, snapshot):
            proxy.rule = always(fault)
            with pytest.raises(RemoteError):
                await snapshot.read_exact(0, 2 * BLOCK)
            proxy.rule = nothing
            await read_all(snapshot, OLD)

    async def test_other_reads_do_not_wait(self, through, proxy):
        """A read of cached bytes is answered while another one waits for a stalled server."""
        gate = Gate()
        async with through() as (_, snapshot):
            assert await snapshot.read_exact(0, BLOCK) == OLD[:BLOCK]
            proxy.rule = always(Fault(gate=gate))
            async with anyio.create_task_group() as group:
                group.start_soon(snapshot.read_exact, 32 * BLOCK, BLOCK)
                assert await anyio.to_thread.run_sync(gate.reached)
                assert await snapshot.read_exact(0, BLOCK) == OLD[:BLOCK]
                gate.open()
            await read_all(snapshot, OLD)


class TestChanged:
    """An object that is overwritten at any moment: a snapshot reads bytes of one version only."""

    async def test_between_open_and_read(self, through, nginx, stored):
        async with through() as (_, snapshot):
            nginx.put(stored, NEW)
            with pytest.raises(aiommap.StaleSnapshotError):
                await snapshot.read_exact(0, BLOCK)
            with pytest.raises(aiommap.StaleSnapshotError):
                await snapshot.verify()
        async with through() as (_, snapshot):
            await read_all(snapshot, NEW)
            await snapshot.verify()

    async def test_cached_blocks_stay(self, through, nginx, stored):
        async with through() as (_, snapshot):
            await snapshot.read_exact(0, 8 * BLOCK)
            nginx.put(stored, NEW)
            assert await snapshot.read_exact(0, 8 * BLOCK) == OLD[: 8 * BLOCK]
            with pytest.raises(aiommap.StaleSnapshotError):
                await snapshot.read_exact(40 * BLOCK, 1)
            assert await snapshot.read_exact(BLOCK, 10) == OLD[BLOCK : BLOCK + 10]

    async def test_between_requests_of_one_read(self, through, proxy, nginx, stored):
        def rule(request):
            if request.reads and len(proxy.reads) == 2:
                nginx.put(stored, NEW)

        async with through() as (_, snapshot):
            proxy.rule = rule
            with pytest.raises(aiommap.StaleSnapshotError):
                await snapshot.read_exact(0, len(OLD))
            await outcomes(snapshot, OLD, (aiommap.StaleSnapshotError,))

    async def test_before_a_broken_read_resumes(self, through, proxy, nginx, stored):
        def rule(request):
            if not request.reads:
                return None
            if len(proxy.reads) == 1:
                return cut(1000)
            if len(proxy.reads) == 2:
                nginx.put(stored, NEW)
            return None

        async with through() as (_, snapshot):
            proxy.rule = rule
            with pytest.raises((aiommap.StaleSnapshotError, RemoteError)):
                await snapshot.read_exact(0, 4 * BLOCK)
            await outcomes(snapshot, OLD, (aiommap.StaleSnapshotError,))
        async with through() as (_, snapshot):
            await read_all(snapshot, NEW)

    async def test_if_match_is_ignored(self, through, proxy, nginx, stored):
        """The server sends the new bytes with their own ETag, and we compare that."""
        proxy.rule = each(Fault(ignore=("if-match",)))
        async with through() as (_, snapshot):
            await snapshot.read_exact(0, BLOCK)
            nginx.put(stored, NEW)
            with pytest.raises(aiommap.StaleSnapshotError):
                await snapshot.read_exact(8 * BLOCK, BLOCK)
            assert await snapshot.read_exact(0, BLOCK) == OLD[:BLOCK]

    async def test_other_size(self, through, nginx, stored):
        other = content("longer", len(OLD) + 3 * BLOCK)
        async with through() as (_, snapshot):
            nginx.put(stored, other)
            with pytest.raises(aiommap.StaleSnapshotError):
                await snapshot.read_exact(0, BLOCK)
        async with through() as (_, snapshot):
            await read_all(snapshot, other)

    async def test_deleted(self, through, nginx, stored):
        async with through() as (_, snapshot):
            await snapshot.read_exact(0, BLOCK)
            nginx.delete(stored)
            assert await snapshot.read_exact(0, BLOCK) == OLD[:BLOCK]
            with pytest.raises(aiommap.StaleSnapshotError):
                await snapshot.read_exact(8 * BLOCK, BLOCK)
            with pytest.raises(aiommap.StaleSnapshotError):
                await snapshot.verify()
        with pytest.raises(FileNotFoundError):
            async with through():
                pass

    async def test_time_and_size_alike(self, through, nginx, stored):
        """No client can see this change: the server sends the same ETag. docs/remote says so."""
        async with through() as (_, snapshot):
            await snapshot.read_exact(0, BLOCK)
            path = nginx.objects / stored
            modified = path.stat().st_mtime
            path.write_bytes(NEW)
            os.utime(path, (modified, modified))
            assert await snapshot.read_exact(8 * BLOCK, BLOCK) == NEW[8 * BLOCK : 9 * BLOCK]


class TestOpening:
    async def test_missing_object(self, tmp_path, nginx):
        async with RemoteCache(tmp_path) as cache:
            with pytest.raises(FileNotFoundError):
                await cache.open(ObstoreSource(nginx.store(), "nothing/there"))

    async def test_forbidden(self, through, proxy):
        proxy.rule = each(Fault(status=403))
        with pytest.raises(PermissionError):
            async with through():
                pass

    async def test_server_down(self, tmp_path, nginx):
        async with RemoteCache(tmp_path) as cache:
            with pytest.raises(RemoteError):
                await cache.open(ObstoreSource(nginx.store(1), "object"))

    @pytest.mark.parametrize("said", [None, 'W/"weak"'], ids=["none", "weak"])
    async def test_no_validator(self, through, proxy, said):
        proxy.rule = each(etag(said))
        with pytest.raises(aiommap.UnsupportedError, match="validator"):
            async with through():
                pass
        async with through(validator="modified") as (_, snapshot):
            await read_all(snapshot, OLD)

    async def test_no_validator_at_all(self, through, proxy):
        proxy.rule = each(Fault(headers={"etag": None, "last-modified": None}))
        with pytest.raises(aiommap.UnsupportedError, match="validator"):
            async with through():
                pass


class TestVersions:
    """In a bucket that keeps versions, an overwritten object stays readable."""

    @pytest.fixture
    def versioned(self, moto, request):
        moto.keep_versions()
        moto.put(request.node.name, OLD)
        return request.node.name

    async def test_overwritten_and_deleted(self, tmp_path, moto, versioned):
        async with opened(tmp_path, moto.store(), versioned, read_ahead=False) as (_, snapshot):
            assert snapshot.version
            moto.put(versioned, NEW)
            assert await snapshot.read_exact(5, 8 * BLOCK) == OLD[5 : 8 * BLOCK + 5]
            moto.delete(versioned)
            assert await snapshot.read_exact(0, len(OLD)) == OLD

    async def test_asked_for(self, tmp_path, moto, versioned):
        old = obstore.head(moto.store(), versioned)["version"]
        moto.put(versioned, NEW)
        async with opened(tmp_path, moto.store(), versioned, version=old) as (_, snapshot):
            assert snapshot.version == old
            await read_all(snapshot, OLD, step=20 * BLOCK)
        async with opened(tmp_path, moto.store(), versioned) as (_, snapshot):
            await read_all(snapshot, NEW, step=20 * BLOCK)


async def test_fetches_are_cancelled_for_nobody(through, proxy):
    """A reader that is cancelled leaves its fetch to other readers and to the cache (R11)."""
    gate = Gate()
    async with through() as (_, snapshot):
        proxy.rule = once(Fault(gate=gate))
        async with anyio.create_task_group() as group:
            given_up = anyio.CancelScope()

            async def give_up():
                with given_up:
                    await snapshot.read_exact(0, BLOCK)

            group.start_soon(give_up)
            assert await anyio.to_thread.run_sync(gate.reached)
            answers = []

            async def wait():
                answers.append(await snapshot.read_exact(0, BLOCK))

            group.start_soon(wait)
            given_up.cancel()
            gate.open()
        assert answers == [OLD[:BLOCK]]
        assert len(proxy.reads) == 1


async def test_readers_share_fetches(through, proxy):
    """Many readers of the same blocks cause one GET for each run of missing blocks."""
    async with through() as (cache, snapshot):
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(functools.partial(read_all, snapshot, OLD, step=4 * BLOCK))
        fetched = [block for start, end in proxy.ranges for block in range(start, end, BLOCK)]
        assert sorted(fetched) == [*range(0, len(OLD), BLOCK)]
        assert cache.statistics().gets == len(proxy.reads)
