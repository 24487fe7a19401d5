"""The one place from which tests reach what is private; tests/project/test_tests.py counts.

A test uses public names where it can. This file names the private things that have tests of their
own, such as the pure modules; whole modules are here for tests that replace a function in them. If
you rename something below ``aiommap``, change this file, and no test.
"""

from __future__ import annotations

from aiommap import _arguments, _native, _ranges
from aiommap._allocation import table
from aiommap._cli import (
    _completion,
    _heartbeat,
    _main,
    _measure,
    _output,
    _prewarm,
    _system,
    _text,
    main,
)
from aiommap._cli.demo import command, stage
from aiommap._core import disk, file_state, leases, opening, own_activity, paths
from aiommap._file import searching, writing
from aiommap._flush import flush_queue, histogram, scheduler, trigger, writeback
from aiommap._ipc import file_locks, futex, turns
from aiommap._log import appender, format, reader
from aiommap._log import opening as log_opening
from aiommap._pages import huge_pages, pager
from aiommap._remote import (
    addresses,
    beside,
    body,
    budget,
    cache_folder,
    comparing,
    entry,
    eviction,
    fetches,
    sequence,
)
from aiommap._remote import fetching as remote_fetching
from aiommap._remote import layout as remote_layout
from aiommap._remote import obstore as remote_obstore
from aiommap._remote import source as remote_source
from aiommap._runtime import asyncio_loop, batching, engine, kept_threads, threads, workers
from aiommap._snapshot import follower
from aiommap._storage import descriptor
from aiommap._watch import (
    attribution,
    changes,
    notifier,
    path_resolution,
    scanner,
    stat_differ,
    watched_path,
    watcher,
)
from aiommap.asgi import _cache, _folder, _requests, _sending

native = _native

# aiommap._allocation
AllocationTable = table.AllocationTable
Layout = table.Layout
check_alignment = table.check_alignment

# aiommap._arguments
check_disjoint = _arguments.check_disjoint
check_range = _arguments.check_range
check_tail = _arguments.check_tail

# aiommap._cli
Heartbeat = _heartbeat.Heartbeat
Measurement = _measure.Measurement
SHELLS = _completion.SHELLS
Stage = stage.Stage
build_parser = _main.build_parser
cache_state = _system.cache_state
choose_screen = _output.choose_screen
columns_of = _text.columns_of
drop_pages = _system.drop_pages
fold = _text.fold
format_bytes = _text.format_bytes
format_difference = _text.format_difference
format_seconds = _text.format_seconds
format_share = _text.format_share
measure_shared = _measure.measure_shared
parse_bytes = _text.parse_bytes
plural = _text.plural
prewarm_module = _prewarm
printable = _text.printable
random_offsets = _measure.random_offsets
shorten = _text.shorten
wrap = _text.wrap

# aiommap.asgi
FileCache = _cache.FileCache
Folder = _folder.Folder
ServedPath = _cache._WatchedPath
MAX_RANGES = _requests.MAX_RANGES
MAX_PIECE_BYTES = _sending.MAX_PIECE_BYTES
MIN_PIECE_BYTES = _sending.MIN_PIECE_BYTES
FIRST_PIECE_BYTES = _sending.PIECE_BYTES
PIECE_SECONDS = _sending.PIECE_SECONDS
Validators = _requests.Validators
canonical = _requests.canonical
decide = _requests.decide
deciding_fields = _requests.deciding_fields
parse_date = _requests.parse_date
parse_ranges = _requests.parse_ranges

# aiommap._core
Identity = file_state.Identity
OwnActivity = own_activity.OwnActivity
absolute_path = paths.absolute_path
nowait_works = opening.nowait_works

# aiommap._file
Writer = writing.Writer

# aiommap._flush
BACKGROUND_FLUSHES = scheduler.BACKGROUND_FLUSHES
FlushQueue = flush_queue.FlushQueue
FlushTrigger = trigger.FlushTrigger
Histogram = histogram.Histogram
RATIO = histogram.RATIO
Writeback = writeback.Writeback

# aiommap._ipc
Turns = turns.Turns

# aiommap._log
CONTROL_BYTES = format.CONTROL_BYTES
HEADER_BYTES = format.HEADER_BYTES
SegmentHeader = format.SegmentHeader
frame_bytes = format.frame_bytes
segment_name = format.segment_name
log_reader = reader
log_appender = appender

# aiommap._native
Blocks = _native.Blocks
LogCursor = _native.LogCursor
LogReceipt = _native.LogReceipt
LogRecord = _native.LogRecord
LogWriter = _native.LogWriter
PoolCommit = _native.PoolCommit
Mapping = _native.Mapping
PIECE_BYTES = _native.PIECE_BYTES
crc32c = _native.crc32c
#: As in ``enum crc32c_way``.
CRC32C_WAYS = CRC32C_TABLE, *_ = range(3)
find_record = _native.find_record
search_frames = _native.search_frames
time_slice_renew = _native.time_slice_renew

# aiommap._pages
Pager = pager.Pager

# aiommap._ranges
RangeCounts = _ranges.RangeCounts
RangeSet = _ranges.RangeSet
align_down = _ranges.align_down
align_up = _ranges.align_up

# aiommap._remote
Header = remote_layout.Header
CACHE_MARKER = remote_layout.MARKER
Entry = entry.Entry
forget_address = addresses.forget
ReadAhead = remote_fetching.ReadAhead
requests_ahead = remote_fetching.requests_ahead
Body = body.Body
Fetch = fetches.Fetch
FetchQueue = fetches.FetchQueue
Sequence = sequence.Sequence
requests_of = remote_fetching.requests_of
runs_of = remote_fetching.runs_of
ObjectIdentity = remote_source.ObjectIdentity
source_of_url = remote_obstore.source_of_url
without_secrets = remote_source.without_secrets

# aiommap._runtime
BatchQueue = batching.BatchQueue
Kind = batching.Kind
Limiter = workers.Limiter
Workers = workers.Workers
clock = kept_threads.clock
run_in_thread = threads.run_in_thread

# aiommap._snapshot
MAX_OVERTAKEN = follower.MAX_OVERTAKEN

# aiommap._watch
ChangeBuffer = changes.ChangeBuffer
OwnChanges = attribution.OwnChanges
PathResolver = path_resolution.PathResolver
StatDiffer = stat_differ.StatDiffer
WatchedPath = watched_path.WatchedPath
classify = changes.classify
is_remote = path_resolution.is_remote
merge = changes.merge
size_is_stable = attribution.size_is_stable
subtract_own = attribution.subtract_own


def core_of(opened):
    """Return the ``FileCore`` of an open file or snapshot: its mapping, disk and state."""
    return opened._core


def flusher_of(file):
    """Return the ``Flusher`` of a file; a test may flush with it as the background does."""
    return file._open.flusher


def pool_of(workers):
    """Return the native pool in which reads of a hub wait; make it if there is none."""
    assert workers.queue(0) is not None
    return workers._engine._pool


def workers_of(opened):
    """Return the ``Workers`` of a file's hub; a test may take all tokens: see ``limiters``."""
    return core_of(opened).workers
