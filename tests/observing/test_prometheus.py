"""The Prometheus collector on real files: what a scrape shows, and that it disturbs nothing."""

from __future__ import annotations

import gc
import importlib
import itertools
import math
import os
import subprocess
import sys
import threading
import urllib.request
import weakref

import anyio
import anyio.lowlevel
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import REGISTRY

from aiommap.prometheus import FileCollector

asynchronous = pytest.mark.anyio

METRICS = {
    "aiommap_reads_total": "counter",
    "aiommap_fell_back_reads_total": "counter",
    "aiommap_fell_back_writes_total": "counter",
    "aiommap_writes_total": "counter",
    "aiommap_flushes_total": "counter",
    "aiommap_flushed_bytes_total": "counter",
    "aiommap_faults_total": "counter",
    "aiommap_flush_duration_seconds": "summary",
    "aiommap_flush_group_requests": "summary",
    "aiommap_dirty_bytes": "gauge",
    "aiommap_oldest_dirty_seconds": "gauge",
    "aiommap_leases": "gauge",
    "aiommap_flush_failed": "gauge",
    "aiommap_poisoned": "gauge",
}


@pytest.fixture
def registry():
    return CollectorRegistry(auto_describe=True)


def parsed(exposition):
    """Map (name, other labels) to value, for each (path, opening), as Prometheus would read it."""
    found = {}
    for family in text_string_to_metric_families(exposition.decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            series = found.setdefault((labels.pop("path"), labels.pop("opening")), {})
            key = (sample.name, *labels.values())
            assert key not in series, f"{key} is there twice"
            series[key] = sample.value
    return found


def scrape(registry):
    return parsed(generate_latest(registry))


def counters(series):
    """Return those of the values that may never fall."""
    growing = ("_total", "_count", "_sum")
    return {key: value for key, value in series.items() if key[0].endswith(growing)}


@asynchronous
async def test_scrape_shows_statistics(path, registry):
    async with aiommap.open(path, "r+") as f:
        registry.register(FileCollector(f))
        await f.write(0, b"x" * PAGE)
        await f.write_many([(2 * PAGE, b"y" * PAGE), (0, b"z")])
        await f.flush()
        await f.write(5 * PAGE, b"dirty")
        await f.read(0, 16 * PAGE)
        view = f.view(0, PAGE)
        pinned = view.memory
        (series,) = scrape(registry).values()
        found = f.statistics()
        pinned.release()
        view.release()
    age = series.pop(("aiommap_oldest_dirty_seconds",))
    assert 0 < age < found.oldest_dirty_seconds
    assert found.flushes == found.leases == 1
    assert series == {
        ("aiommap_reads_total", "inline"): found.inline_reads,
        ("aiommap_reads_total", "offloaded"): found.offloaded_reads,
        ("aiommap_fell_back_reads_total",): found.fell_back_reads,
        ("aiommap_fell_back_writes_total",): found.fell_back_writes,
        ("aiommap_writes_total", "inline"): found.inline_writes,
        ("aiommap_writes_total", "offloaded"): found.offloaded_writes,
        ("aiommap_flushes_total",): found.flushes,
        ("aiommap_flushed_bytes_total",): found.flushed_bytes,
        ("aiommap_faults_total",): found.faults,
        ("aiommap_flush_duration_seconds", "0.5"): found.flush_seconds.p50,
        ("aiommap_flush_duration_seconds", "0.99"): found.flush_seconds.p99,
        ("aiommap_flush_duration_seconds_count",): found.flushes,
        ("aiommap_flush_duration_seconds_sum",): found.flush_seconds.total,
        ("aiommap_flush_group_requests", "0.5"): found.flush_group.p50,
        ("aiommap_flush_group_requests", "0.99"): found.flush_group.p99,
        ("aiommap_flush_group_requests_count",): found.flushes,
        ("aiommap_flush_group_requests_sum",): found.flush_requests,
        ("aiommap_dirty_bytes",): found.dirty_bytes,
        ("aiommap_leases",): found.leases,
        ("aiommap_flush_failed",): 0,
        ("aiommap_poisoned",): 0,
    }


@asynchronous
async def test_quantiles_before_any_flush(path, registry):
    async with aiommap.open(path) as f:
        registry.register(FileCollector(f))
        (series,) = scrape(registry).values()
    quantiles = {key: value for key, value in series.items() if "0.5" in key or "0.99" in key}
    assert len(quantiles) == 4
    assert all(math.isnan(value) for value in quantiles.values())
    assert series[("aiommap_flush_duration_seconds_count",)] == 0
    assert series[("aiommap_oldest_dirty_seconds",)] == 0


def test_metrics_are_described_and_documented(registry):
    registry.register(FileCollector())
    lines = generate_latest(registry).decode().splitlines()
    types = dict(line.split()[2:] for line in lines if line.startswith("# TYPE"))
    assert types == METRICS
    assert all(f"``{name}``" in FileCollector.__doc__ for name in METRICS)


def test_register_asks_no_file(registry, monkeypatch):
    monkeypatch.setattr(FileCollector, "collect", None)
    registry.register(FileCollector())
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(FileCollector())


def test_register_at_the_default_registry():
    collector = FileCollector()
    REGISTRY.register(collector)
    REGISTRY.unregister(collector)


@asynchronous
async def test_hub_shows_files_open_at_the_scrape(path, tmp_path, registry):
    async with aiommap.Hub() as hub:
        registry.register(FileCollector(hub))
        assert scrape(registry) == {}
        async with hub.open(path), hub.open(tmp_path / "new", "x+", size=1):
            assert {found for found, _ in scrape(registry)} == {str(path), str(tmp_path / "new")}
        assert scrape(registry) == {}


@asynchronous
async def test_file_is_shown_until_closed(path, registry):
    async with aiommap.open(path) as f:
        registry.register(FileCollector(f))
        assert list(scrape(registry)) == [(str(path), "0")]
    assert scrape(registry) == {}


@asynchronous
async def test_files_are_listed_in_order(path):
    async with aiommap.Hub() as hub:
        assert hub.files == ()
        async with hub.open(path) as first, hub.open(path) as second:
            assert hub.files == (first, second)
            await first.aclose()
            assert hub.files == (second,)
    assert hub.files == ()


@asynchronous
async def test_file_named_twice_is_shown_once(path, registry):
    async with aiommap.Hub() as hub, hub.open(path) as f, aiommap.open(path) as other:
        registry.register(FileCollector(hub, f, other, f))
        assert sorted(scrape(registry)) == [(str(path), "0"), (str(path), "1")]


@asynchronous
async def test_series_begin_again_at_zero(path, registry):
    async with aiommap.Hub() as hub:
        registry.register(FileCollector(hub))
        async with hub.open(path) as f:
            await f.read(0, 10)
            (before,) = scrape(registry).items()
        async with hub.open(path):
            (after,) = scrape(registry).items()
    assert before[0] == after[0] == (str(path), "0")
    assert sum(counters(before[1]).values()) == 1
    assert sum(counters(after[1]).values()) == 0


@asynchronous
async def test_series_of_files_at_one_path(path, registry):
    """One sum, or renumbered series, would fall as the first file closes (prometheus.1)."""
    async with aiommap.Hub() as hub, hub.open(path) as first, hub.open(path) as second:
        registry.register(FileCollector(hub))
        for _ in range(3):
            await first.read(0, 1)
        await second.read(0, 1)
        key = ("aiommap_reads_total", "inline")
        label = str(path)
        both = {which: series[key] for which, series in scrape(registry).items()}
        assert both == {(label, "0"): 3, (label, "1"): 1}
        await first.aclose()
        assert {which: series[key] for which, series in scrape(registry).items()} == {
            (label, "1"): 1
        }
        async with hub.open(path):
            one_more = {which: series[key] for which, series in scrape(registry).items()}
            assert one_more == {(label, "0"): 0, (label, "1"): 1}


@asynchronous
async def test_collector_keeps_nothing_alive(path, registry):
    hub = aiommap.Hub()
    f = await hub.open(path)
    single = await aiommap.open(path)
    registry.register(FileCollector(hub, single))
    assert len(scrape(registry)) == 2
    await hub.aclose()
    await single.aclose()
    gone = [weakref.ref(thing) for thing in (hub, f, single)]
    del hub, f, single
    await anyio.lowlevel.checkpoint()
    gc.collect()
    assert [reference() for reference in gone] == [None, None, None]
    assert scrape(registry) == {}


@asynchronous
async def test_path_not_utf8_does_not_fail(tmp_path, registry):
    odd = os.fsencode(tmp_path) + b'/\xff\n"\\'
    async with aiommap.open(odd, "x+", size=1) as f:
        registry.register(FileCollector(f))
        assert [label for label, _ in scrape(registry)] == [f'{tmp_path}/\\udcff\n"\\']


@pytest.mark.parametrize("source", [None, "path", []], ids=repr)
def test_other_sources_are_refused(source):
    with pytest.raises(TypeError, match="give it hubs and mapped files"):
        FileCollector(source)


@asynchronous
async def test_scrape_in_a_thread_never_falls(tmp_path, path, registry):
    scrapes = []
    enough = threading.Event()

    def scrape_on():
        while not enough.is_set():
            scrapes.append(scrape(registry))

    async def open_and_close(hub):
        while len(scrapes) < 30:
            async with hub.open(tmp_path / "other", "w+", size=PAGE):
                pass

    async def write(f, start):
        while len(scrapes) < 30:
            for i in range(50):
                await f.write((start + i) * 16, b"0123456789abcdef")
            await f.read(0, PAGE)
            await anyio.lowlevel.checkpoint()

    policy = FlushPolicy.every_writes(100)
    async with aiommap.Hub() as hub, hub.open(path, "r+", flush=policy) as f:
        registry.register(FileCollector(hub))
        async with anyio.create_task_group() as scraping:
            scraping.start_soon(anyio.to_thread.run_sync, scrape_on)
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(open_and_close, hub)
                    group.start_soon(write, f, 0)
                    group.start_soon(write, f, 1000)
            finally:
                enough.set()
        await f.flush()
        found = f.statistics()
        last = scrape(registry)[str(path), "0"]
    seen = [counters(one[str(path), "0"]) for one in scrapes]
    for before, after in itertools.pairwise(seen):
        assert not {key for key in before if after[key] < before[key]}
    assert seen[0][("aiommap_writes_total", "inline")] < last[("aiommap_writes_total", "inline")]
    assert last[("aiommap_flushes_total",)] == found.flushes >= 1


@pytest.mark.slow
@asynchronous
async def test_scrape_by_the_clients_server(path, registry):
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    address = f"http://127.0.0.1:{server.server_port}/metrics"

    def fetch():
        with urllib.request.urlopen(address, timeout=100) as answer:
            return answer.read()

    try:
        async with aiommap.open(path) as f:
            registry.register(FileCollector(f))
            await f.read(0, 1)
            found = parsed(await anyio.to_thread.run_sync(fetch))
    finally:
        await anyio.to_thread.run_sync(server.shutdown)
        server.server_close()
        thread.join()
    assert found[str(path), "0"]["aiommap_reads_total", "inline"] == 1


def test_package_loads_no_client_library():
    script = "import sys, aiommap; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_missing_client_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "aiommap.prometheus")
    with pytest.raises(ImportError, match=r'pip install "aiommap\[prometheus\]"'):
        importlib.import_module("aiommap.prometheus")
