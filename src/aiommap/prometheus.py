"""Prometheus metrics of mapped files; needs prometheus-client (the extra ``prometheus``).

An application only has to call ``REGISTRY.register(FileCollector(hub))``.

Theory of operation. A scrape asks every open file for its ``statistics()``, and keeps only the
labels of these files. It may run in any thread while the loop runs: the numbers are plain integers
that only grow, each is read in one step, and no mutex is shared with the loop.

Invariants.
  1  Every open file has its own series, whose counters never fall. Two files open at one path
     differ in the label ``opening``, and each keeps its label for as long as it is open.
  2  The collector has weak references only; during a scrape it refers to the files that it reports.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from weakref import ref

from . import Distribution, FileStatistics, Hub, MappedFile
from ._remote.cache import RemoteCache

try:
    from prometheus_client import Metric
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        SummaryMetricFamily,
    )
    from prometheus_client.registry import Collector
except ImportError as _missing:
    raise ImportError(
        'aiommap.prometheus needs prometheus-client: pip install "aiommap[prometheus]"'
    ) from _missing

__all__ = ("CacheCollector", "FileCollector")

#: The labels that tell the series of one file or cache from all others: path, opening.
_FileLabels = tuple[str, str]
_FILE = ("path", "opening")


class FileCollector(Collector):
    """Reports what open files have done; give it to ``register`` of a prometheus-client registry.

    The series of a file begin when it is opened and end when it is closed. When the path is opened
    again they begin at zero, which Prometheus takes for a restart. Events between the last scrape
    of a file and its closing are not reported. All series have the labels ``path`` and ``opening``;
    ``opening`` is "0" unless other files were open at the same path when the file was opened.

    - ``aiommap_reads_total``, ``aiommap_writes_total``: also by ``way``, "inline" or "offloaded".
    - ``aiommap_fell_back_reads_total``, ``aiommap_fell_back_writes_total``,
      ``aiommap_flushes_total``, ``aiommap_flushed_bytes_total``, ``aiommap_faults_total``: as in
      ``FileStatistics``.
    - ``aiommap_flush_duration_seconds``, ``aiommap_flush_group_requests``: summaries, with the
      quantiles 0.5 and 0.99 since the file was opened; NaN before its first flush.
    - ``aiommap_dirty_bytes``, ``aiommap_oldest_dirty_seconds`` (0 if nothing is dirty),
      ``aiommap_leases``, ``aiommap_flush_failed`` and ``aiommap_poisoned`` (0 or 1, as in
      ``FileStatistics``: alert on both): gauges.

    Args:
        sources: hubs, for all files that are open in them at the time of a scrape, and single
            files; they are referenced weakly. Give all of them to one collector, because a registry
            accepts each metric name once.
    Raises:
        TypeError: if a source is neither a hub nor a file.
    Concurrency: any number of threads may scrape at the same time. A scrape never waits, but with
        the text that is made from it, it takes about 0.1 ms for each file: with hundreds of files,
        scrape in another thread than the loop's.
    """

    def __init__(self, *sources: Hub | MappedFile) -> None:
        for source in sources:
            if not isinstance(source, Hub | MappedFile):
                raise TypeError(
                    f"FileCollector got {source!r}: give it hubs and mapped files; a snapshot is a "
                    "file of the hub= that it was opened with"
                )
        self._sources = tuple(ref(source) for source in sources)
        # Replaced as a whole, so that scrapes that run at once need no mutex.
        self._labels: dict[ref[MappedFile], _FileLabels] = {}

    def describe(self) -> Iterable[Metric]:
        """Name the metrics without asking any file; called when the collector is registered."""
        return list(_Families())

    def collect(self) -> Iterable[Metric]:
        """Take a snapshot of every open file; called by a scrape."""
        families = _Families()
        files = self._open_files()
        labels = self._label(files)
        for file in files:
            families.add(labels[ref(file)], file.statistics())
        return list(families)

    def _open_files(self) -> list[MappedFile]:
        found: dict[MappedFile, None] = {}  # in order, and each file once
        for source in [reference() for reference in self._sources]:
            if isinstance(source, Hub):
                found.update(dict.fromkeys(source.files))
            elif source is not None and not source.closed:
                found[source] = None
        return list(found)

    def _label(self, files: list[MappedFile]) -> dict[ref[MappedFile], _FileLabels]:
        """Return the labels of files; a new file gets the first free ones (prometheus.1)."""
        before = self._labels
        labels = {key: before[key] for key in map(ref, files) if key in before}
        taken = set(labels.values())
        for file in files:
            if ref(file) not in labels:
                free = (label for label in _openings(file.path or "no path") if label not in taken)
                labels[ref(file)] = label = next(free)
                taken.add(label)
        self._labels = labels
        return labels


def _openings(path: str) -> Iterator[_FileLabels]:
    """Yield the labels that a file or cache may get, in the order in which they are tried."""
    # A path need not be UTF-8, but an exposition is: one such path would fail the whole scrape.
    printable = path.encode("utf-8", "backslashreplace").decode()
    return ((printable, str(number)) for number in itertools.count())


class _Families:
    """All metrics of one scrape."""

    def __init__(self) -> None:
        self.reads = _counter("reads", "Reads, by the way they were answered.", "way")
        self.reads_back = _counter("fell_back_reads", "Reads whose data was not in memory.")
        self.writes = _counter("writes", "Writes, by the way they were stored.", "way")
        self.writes_back = _counter("fell_back_writes", "Writes that would have waited inline.")
        self.flushes = _counter("flushes", "Flushes that ran.")
        self.flushed = _counter("flushed_bytes", "Bytes in the dirty pages flushed.", unit="bytes")
        self.faults = _counter("faults", "Copies and accesses of views that met a lost page.")
        self.seconds = _summary("flush_duration_seconds", "How long flushes took.", "seconds")
        self.group = _summary("flush_group_requests", "Requests that one flush answered.")
        self.dirty = _gauge("dirty_bytes", "Bytes in pages not flushed since stored to.", "bytes")
        self.oldest = _gauge("oldest_dirty_seconds", "Age of the oldest dirty byte.", "seconds")
        self.leases = _gauge("leases", "Views that pin the mapping.")
        self.failed = _gauge("flush_failed", "Whether a flush failed, and nothing is believed.")
        self.poisoned = _gauge("poisoned", "Whether a view met a lost page, and every verb raises.")

    def __iter__(self) -> Iterator[Metric]:
        return iter(vars(self).values())

    def add(self, file: _FileLabels, found: FileStatistics) -> None:
        """Add the samples of one file."""
        self.reads.add_metric([*file, "inline"], found.inline_reads)
        self.reads.add_metric([*file, "offloaded"], found.offloaded_reads)
        self.reads_back.add_metric(file, found.fell_back_reads)
        self.writes.add_metric([*file, "inline"], found.inline_writes)
        self.writes.add_metric([*file, "offloaded"], found.offloaded_writes)
        self.writes_back.add_metric(file, found.fell_back_writes)
        self.flushes.add_metric(file, found.flushes)
        self.flushed.add_metric(file, found.flushed_bytes)
        self.faults.add_metric(file, found.faults)
        _add_distribution(self.seconds, file, found.flush_seconds)
        _add_distribution(self.group, file, found.flush_group)
        self.dirty.add_metric(file, found.dirty_bytes)
        self.oldest.add_metric(file, found.oldest_dirty_seconds or 0.0)
        self.leases.add_metric(file, found.leases)
        self.failed.add_metric(file, float(found.flush_failed))
        self.poisoned.add_metric(file, float(found.poisoned))


def _counter(name: str, text: str, *labels: str, unit: str = "") -> CounterMetricFamily:
    return CounterMetricFamily(f"aiommap_{name}", text, labels=[*_FILE, *labels], unit=unit)


def _gauge(name: str, text: str, unit: str = "") -> GaugeMetricFamily:
    return GaugeMetricFamily(f"aiommap_{name}", text, labels=_FILE, unit=unit)


def _summary(name: str, text: str, unit: str = "") -> SummaryMetricFamily:
    return SummaryMetricFamily(f"aiommap_{name}", text, labels=_FILE, unit=unit)


def _add_distribution(family: SummaryMetricFamily, file: _FileLabels, found: Distribution) -> None:
    for quantile, value in (("0.5", found.p50), ("0.99", found.p99)):
        labels = {**dict(zip(_FILE, file, strict=True)), "quantile": quantile}
        family.add_sample(family.name, labels, value if found.count else float("nan"))
    family.add_metric(file, found.count, found.total)


#: Counters of a cache, with what each counts.
_CACHE_COUNTERS = {
    "hits": "Reads that the cache answered without any request.",
    "misses": "Reads that waited for a fetch.",
    "gets": "Requests for bytes.",
    "heads": "Requests for the state of an object.",
    "fetched_bytes": "Bytes that responses brought.",
    "coalesced": "Waits for a block that somebody else was fetching.",
    "stored_blocks": "Blocks written to the cache.",
    "unstored_blocks": "Blocks handed out without being stored.",
    "verified_blocks": "Blocks of an earlier boot whose checksum was right.",
    "bad_blocks": "Blocks whose checksum was wrong.",
    "evicted_blocks": "Blocks given up to make room.",
    "evicted_bytes": "Bytes given up to make room.",
    "takeovers": "Blocks taken over from a process that died or was slow.",
    "hedges": "Blocks fetched a second time because their owner was slow.",
    "errors": "Failures of the cache, each a miss and no error of a read.",
}
_CACHE_GAUGES = {
    "used_bytes": "Bytes that all processes have stored or reserved.",
    "max_bytes": "Bytes that they may not exceed.",
    "open_objects": "Objects that this process has open.",
}


class CacheCollector(Collector):
    """Reports what caches of remote objects have done; give it to ``register`` of a registry.

    Every field of ``aiommap.remote.CacheStatistics`` is a metric: counters such as
    ``aiommap_cache_hits_total``, and gauges such as ``aiommap_cache_used_bytes``. All have the
    labels ``folder`` and ``opening``; ``opening`` is "0" unless a cache of the same folder was
    given before.

    Args:
        caches: the caches, which are referenced weakly. Give all of them to one collector.
    Raises:
        TypeError: if one of them is not a ``RemoteCache``.
    Concurrency: any thread may scrape.
    """

    def __init__(self, *caches: RemoteCache) -> None:
        for cache in caches:
            if not isinstance(cache, RemoteCache):
                raise TypeError(f"CacheCollector got {cache!r}: give it remote caches")
        self._labels: dict[ref[RemoteCache], _FileLabels] = {}
        for cache in caches:
            if ref(cache) not in self._labels:
                taken = self._labels.values()
                free = (label for label in _openings(cache.folder) if label not in taken)
                self._labels[ref(cache)] = next(free)

    def describe(self) -> Iterable[Metric]:
        """Name the metrics without asking any cache; called when the collector is registered."""
        return list(self._families())

    def collect(self) -> Iterable[Metric]:
        """Take a snapshot of every cache; called by a scrape."""
        families = self._families()
        for reference, labels in self._labels.items():
            cache = reference()
            if cache is not None:
                found = cache.statistics()
                for family in families:
                    field = family.name.removeprefix("aiommap_cache_")
                    family.add_metric(labels, getattr(found, field))
        return families

    def _families(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        counters = [
            CounterMetricFamily(f"aiommap_cache_{name}", text, labels=["folder", "opening"])
            for name, text in _CACHE_COUNTERS.items()
        ]
        gauges = [
            GaugeMetricFamily(f"aiommap_cache_{name}", text, labels=["folder", "opening"])
            for name, text in _CACHE_GAUGES.items()
        ]
        return [*counters, *gauges]
