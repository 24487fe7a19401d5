"""Metrics and spans of a cache of remote objects."""

from __future__ import annotations

import dataclasses

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from aiommap.opentelemetry import instrument, uninstrument
from aiommap.prometheus import CacheCollector
from aiommap.remote import CacheStatistics, RemoteCache
from tests.support.objects import DATA, Objects

pytestmark = pytest.mark.anyio


@pytest.fixture
def cache(tmp_path):
    return RemoteCache(tmp_path / "cache", block_size=4096, min_free=0.0)


async def test_metrics_are_the_statistics(cache):
    registry = CollectorRegistry()
    registry.register(CacheCollector(cache))
    async with cache, cache.open(Objects(DATA)) as s:
        await s.read_exact(0, 10)
        await s.read_exact(0, 10)
        labels = {"folder": cache.folder, "opening": "0"}
        found = cache.statistics()
        for field in dataclasses.fields(CacheStatistics):
            name = f"aiommap_cache_{field.name}"
            values = [registry.get_sample_value(n, labels) for n in (name, f"{name}_total")]
            assert getattr(found, field.name) in values, name


async def test_caches_of_one_folder_have_series_of_their_own(cache, tmp_path):
    registry = CollectorRegistry()
    async with cache, RemoteCache(cache.folder) as other, RemoteCache(tmp_path / "else") as third:
        registry.register(CacheCollector(cache, other, third, other))
        async with other.open(Objects(DATA)), third.open(Objects(DATA)):
            opened = {
                (sample.labels["folder"], sample.labels["opening"]): sample.value
                for metric in registry.collect()
                for sample in metric.samples
                if sample.name == "aiommap_cache_heads_total"
            }
            assert opened == {
                (cache.folder, "0"): 0,
                (cache.folder, "1"): 1,
                (third.folder, "0"): 1,
            }
        text = generate_latest(registry).decode().splitlines()
        assert len(text) == len(set(text))


def test_collector_wants_caches():
    with pytest.raises(TypeError, match="remote caches"):
        CacheCollector(3)


async def test_fetches_are_spans_of_the_object(cache):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument(provider)
    try:
        async with cache, cache.open(Objects(DATA)) as s:
            await s.read_exact(3, 10)
            await s.read_exact(3, 10)
    finally:
        uninstrument()
    found = [
        (span.name, span.attributes["aiommap.offset"], span.attributes["aiommap.length"])
        for span in exporter.get_finished_spans()
        if span.attributes["aiommap.path"] == "test://host/object"
    ]
    assert found == [("aiommap.open", 0, len(DATA)), ("aiommap.read", 3, 10)]
