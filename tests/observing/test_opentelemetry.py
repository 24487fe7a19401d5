"""Spans of operations that left the loop thread, with the real SDK and its in-memory exporter."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import anyio
import pytest

import aiommap
from aiommap import PAGE_SIZE as PAGE
from aiommap import FlushPolicy

pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from aiommap.opentelemetry import instrument, uninstrument

asynchronous = pytest.mark.anyio

#: More than an inline read or write may take.
BIG = 2 << 20


@pytest.fixture
def provider():
    yield TracerProvider()
    uninstrument()


@pytest.fixture
def spans(provider):
    """A way to take the spans that have ended since the last call: (name without prefix, span)."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def finished():
        found = exporter.get_finished_spans()
        exporter.clear()
        return [(span.name.removeprefix("aiommap."), span) for span in found]

    return finished


@pytest.fixture
def big(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(os.urandom(BIG))
    return path


def where(span):
    """Return offset, length and hops; check that the path is the only other attribute."""
    attributes = dict(span.attributes)
    attributes.pop("aiommap.path")
    numbers = tuple(attributes.pop(f"aiommap.{name}") for name in ("offset", "length", "hops"))
    assert not attributes
    return numbers


@asynchronous
async def test_slow_operations_make_one_span(provider, spans, big):
    instrument(provider)
    async with aiommap.open(big, "r+") as f:
        await f.read(0, BIG)
        await f.read_into(PAGE, bytearray(BIG - PAGE))
        await f.read_many([(0, BIG), (PAGE, 3)])
        await f.write(PAGE, bytes(BIG - PAGE))
        await f.flush()
        await f.prewarm(0, 3 * PAGE)
    found = spans()
    assert [(name, *where(span)) for name, span in found] == [
        ("open", 0, BIG, 1),
        ("read", 0, BIG, 1),
        ("read", PAGE, BIG - PAGE, 1),
        ("read", 0, BIG, 1),
        ("write", PAGE, BIG - PAGE, 1),
        ("flush", 0, BIG, 1),
        ("prewarm", 0, 3 * PAGE, 1),
    ]
    assert {span.attributes["aiommap.path"] for _, span in found} == {str(big)}
    assert {span.status.status_code for _, span in found} == {StatusCode.UNSET}
    assert {span.instrumentation_scope.name for _, span in found} == {"aiommap"}


@asynchronous
async def test_inline_verbs_make_none(provider, spans, path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.never()) as f:
        await f.write(0, b"x")
        instrument(provider)
        await f.write(0, b"y")
        await f.read(0, 100)
        f.read_nowait(0, 100)
        await f.read_many([(0, 10), (PAGE, 10)])
        assert f.statistics().offloaded_reads == 0
    assert spans() == []


@asynchronous
async def test_durable_write_is_one_span(provider, spans, path):
    async with aiommap.open(path, "r+", flush=FlushPolicy.always()) as f:
        instrument(provider)
        await f.write(5, b"abc")
        await f.flush()
    assert [(name, *where(span)) for name, span in spans()] == [
        ("write", 5, 3, 1),
        ("flush", 0, 16 * PAGE, 0),
    ]


@asynchronous
async def test_close_of_dirty_file_makes_a_flush(provider, spans, path):
    f = await aiommap.open(path, "r+")
    await f.write(0, b"x")
    instrument(provider)
    await f.aclose()
    assert [(name, *where(span)) for name, span in spans()] == [("flush", 0, 16 * PAGE, 1)]


@asynchronous
async def test_parent_is_that_of_the_asking_task(provider, spans, big):
    instrument(provider)
    tracer = provider.get_tracer("application")

    async def request(number, f):
        with tracer.start_as_current_span(f"request {number}"):
            await f.read(number, BIG - number)

    async with aiommap.open(big) as f, anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(request, number, f)
    found = spans()
    requests = {span.context.span_id: span for name, span in found if name.startswith("request")}
    reads = [span for name, span in found if name == "read"]
    assert len(reads) == 4
    for read in reads:
        parent = requests[read.parent.span_id]
        assert parent.name == f"request {read.attributes['aiommap.offset']}"
        assert parent.start_time <= read.start_time <= read.end_time


@asynchronous
async def test_threshold_omits_short_spans(provider, spans, big):
    instrument(provider, threshold=3600)
    async with aiommap.open(big) as f:
        await f.read(0, BIG)
        instrument(provider, threshold=1e-9)  # the last call counts
        before = time.time_ns()
        await f.read(0, BIG)
        after = time.time_ns()
        uninstrument()
        uninstrument()
        await f.read(0, BIG)
    [(name, span)] = spans()
    assert name == "read"
    assert before <= span.start_time < span.end_time <= after + 1_000_000


@asynchronous
async def test_failure_is_recorded(provider, spans, big, outside):
    async with aiommap.open(big, "r+") as f:
        instrument(provider)
        outside(big, PAGE)
        with pytest.raises(aiommap.MappingFaultError, match="shrank") as caught:
            await f.read(0, BIG)
    [(_, span)] = spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == str(caught.value)
    [event] = span.events
    assert event.attributes["exception.type"] == "aiommap.MappingFaultError"
    assert event.attributes["exception.message"] == str(caught.value)
    assert event.timestamp == span.end_time


@asynchronous
async def test_cancellation_is_no_failure(provider, spans, path):
    async with aiommap.open(path, "r+") as f:
        await f.write(0, b"x")
        instrument(provider)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await f.flush()
    [(_, span)] = spans()
    assert span.attributes["aiommap.cancelled"] is True
    assert span.status.status_code is StatusCode.UNSET
    assert not span.events


@asynchronous
async def test_path_not_utf8_is_escaped(provider, spans, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff"
    instrument(provider)
    async with aiommap.open(os.fsdecode(name), "w+", size=PAGE):
        pass
    assert {span.attributes["aiommap.path"] for _, span in spans()} == {f"{tmp_path}/\\udcff"}


@asynchronous
async def test_observer_that_raises_changes_nothing(provider, spans, big, caplog, monkeypatch):
    def fail(*_args, **_options):
        raise ZeroDivisionError

    instrument(provider)
    async with aiommap.open(big) as f:
        monkeypatch.setattr("opentelemetry.sdk.trace.Tracer.start_span", fail)
        assert await f.read(0, BIG) == big.read_bytes()
        monkeypatch.undo()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("aiommap.callbacks", "ERROR")
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_threshold_without_sense_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold is"):
        instrument(threshold=threshold)


def test_missing_package_names_the_extra(tmp_path):
    (tmp_path / "opentelemetry.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, "-c", "import aiommap.opentelemetry"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert 'pip install "aiommap[opentelemetry]"' in done.stderr


def test_library_loads_no_telemetry():
    code = "import sys, aiommap; sys.exit('opentelemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=150)
