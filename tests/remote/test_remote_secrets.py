"""No secret reaches the disk, a log, a repr or an error; only its user can read the cache."""

from __future__ import annotations

import logging
import stat

import anyio
import pytest

from aiommap.remote import ObstoreSource, RemoteCache, RemoteError
from tests.support.fault_proxy import Fault, always
from tests.support.remote import BLOCK, content, opened

pytestmark = pytest.mark.anyio

SECRETS = ("dummy-secret", "pass-word", "signature-of-it", "bearer-token")


def reveals(text):
    return [secret for secret in SECRETS if secret in text]


async def test_keys_of_a_store(tmp_path, moto, caplog):
    caplog.set_level(logging.DEBUG)
    moto.put("secret", content("old"))
    folder = tmp_path / "cache"
    async with opened(folder, moto.store(), "secret") as (cache, snapshot):
        await snapshot.read_exact(0, 4 * BLOCK)
        told = [cache, snapshot, snapshot.url, cache.statistics(), ObstoreSource(moto.store(), "k")]
        assert reveals(" ".join(map(repr, told))) == []
    await assert_nothing_is_kept(folder)
    assert reveals(caplog.text) == []


@pytest.mark.parametrize("query", ["", "?X-Amz-Signature=signature-of-it"], ids=["user", "query"])
async def test_secrets_of_a_url(tmp_path, nginx, proxy, caplog, query):
    caplog.set_level(logging.DEBUG)
    nginx.put("secret-url", content("old"))
    url = f"http://user:pass-word@127.0.0.1:{proxy.port}/secret-url{query}"
    folder = tmp_path / "cache"
    async with (
        RemoteCache(folder, block_size=BLOCK) as cache,
        cache.open(url, read_ahead=False) as snapshot,
    ):
        assert await snapshot.read_exact(0, 10) == content("old")[:10]
        assert reveals(snapshot.url + repr(snapshot)) == []
        proxy.rule = always(Fault(status=400))
        with pytest.raises(RemoteError) as caught:
            await snapshot.read_exact(32 * BLOCK, 10)
        error = caught.value
        told = [str(error), repr(error), error.url, str(error.__cause__), repr(error.__cause__)]
        assert reveals(" ".join(told)) == []
    await assert_nothing_is_kept(folder)
    assert reveals(caplog.text) == []


@pytest.mark.parametrize("status", [404, 403, 412, 500])
async def test_no_context_has_the_query(tmp_path, proxy, status):
    """Tools that report errors print contexts, also those that Python leaves out of tracebacks."""
    proxy.rule = always(Fault(status=status))
    url = f"http://127.0.0.1:{proxy.port}/k?X-Amz-Signature=signature-of-it"
    async with RemoteCache(tmp_path / "cache") as cache:
        with pytest.raises(OSError, match="k") as caught:
            await cache.open(url)
        error = caught.value
        while error is not None:
            assert reveals(f"{error} {error!r} {error.args}") == []
            error = error.__context__


async def assert_nothing_is_kept(folder):
    found = await anyio.to_thread.run_sync(lambda: [*folder.rglob("*")])
    files = [path for path in found if path.is_file()]
    assert files
    for path in files:
        kept = path.read_bytes()
        assert [secret for secret in SECRETS if secret.encode() in kept] == []
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
