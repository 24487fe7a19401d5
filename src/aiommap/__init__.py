"""Memory-mapped files for asyncio and trio that keep the disk off the event loop.

    async with aiommap.open("data.bin", "r+") as f:
        data = await f.read(0, 4096)
        receipt = await f.write(0, b"hello")
        await receipt.wait_durable()

The names, in the order in which most programs need them; ``help(aiommap.open)`` says more:

    open            open a file: its modes and options
    MappedFile      an open file: read, write, flush, prewarm, resize, watch, and more
    View            a part of a file, with the same verbs, and its memory as an array
    follow          the newest good file of a path that others replace
    Snapshot        a file that nobody changes
    FlushPolicy     when background flushes make writes durable
    WriteReceipt    tells whether a write is durable, and waits until it is
    Log             records that survive a power cut, for one writer and many readers
    Hub             many files that share worker threads
    Change          a change that others made to a file
    AtomicU64       a word that processes share; tasks can wait for an AtomicU32, or an AsyncLock
    RangeAllocator  hands out ranges of a file that do not overlap

All errors of this package derive from MappedFileError. ``aiommap.testing`` injects faults in tests.
"""

from __future__ import annotations

from ._advice import Advice as Advice
from ._allocation.allocator import RangeAllocator as RangeAllocator
from ._allocation.allocators import align_down as align_down
from ._allocation.allocators import align_up as align_up
from ._allocation.table import AllocatedRange as AllocatedRange
from ._core.file_state import FileState as FileState
from ._core.receipt import WriteReceipt as WriteReceipt
from ._errors import AccessModeError as AccessModeError
from ._errors import AlignmentError as AlignmentError
from ._errors import CorruptLogError as CorruptLogError
from ._errors import CorruptRecordError as CorruptRecordError
from ._errors import FlushError as FlushError
from ._errors import ForkedError as ForkedError
from ._errors import LogError as LogError
from ._errors import MappedFileError as MappedFileError
from ._errors import MappingFaultError as MappingFaultError
from ._errors import OutOfBoundsError as OutOfBoundsError
from ._errors import OverlapError as OverlapError
from ._errors import ReceiptError as ReceiptError
from ._errors import RecordsDiscardedError as RecordsDiscardedError
from ._errors import StaleSnapshotError as StaleSnapshotError
from ._errors import UnsupportedError as UnsupportedError
from ._file.mapped_file import MappedFile as MappedFile
from ._file.records import Records as Records
from ._file.statistics import Distribution as Distribution
from ._file.statistics import FileStatistics as FileStatistics
from ._file.statistics import LeasedRange as LeasedRange
from ._file.view import View as View
from ._flush_policy import FlushPolicy as FlushPolicy
from ._hub.hub import Hub as Hub
from ._hub.hub import open as open
from ._hub.memory import open_memory as open_memory
from ._hub.opening import Opening as Opening
from ._ipc.async_lock import AsyncLock as AsyncLock
from ._ipc.atomics import AtomicU32 as AtomicU32
from ._ipc.atomics import AtomicU32Array as AtomicU32Array
from ._ipc.atomics import AtomicU64 as AtomicU64
from ._ipc.atomics import AtomicU64Array as AtomicU64Array
from ._log.files import LogSegment as LogSegment
from ._log.log import Log as Log
from ._log.receipt import LogReceipt as LogReceipt
from ._log.receipt import LogRecord as LogRecord
from ._log.receipt import LogStatistics as LogStatistics
from ._log.recovery import Recovered as Recovered
from ._native import PAGE_SIZE as PAGE_SIZE
from ._pages.residency import Residency as Residency
from ._runtime.callbacks import Subscription as Subscription
from ._snapshot.live import Generations as Generations
from ._snapshot.live import LiveSnapshot as LiveSnapshot
from ._snapshot.live import follow as follow
from ._snapshot.live_folder import LiveFolder as LiveFolder
from ._snapshot.live_folder import follow_folder as follow_folder
from ._snapshot.snapshot import Snapshot as Snapshot
from ._snapshot.snapshot_file import SnapshotFile as SnapshotFile
from ._storage.descriptor import FileBackend as FileBackend
from ._storage.mapped import MappedBackend as MappedBackend
from ._storage.protocol import StorageBackend as StorageBackend
from ._watch.changes import Change as Change
from ._watch.changes import ChangeKind as ChangeKind
from ._watch.subscriptions import Changes as Changes

__all__ = (
    "PAGE_SIZE",
    "AccessModeError",
    "Advice",
    "AlignmentError",
    "AllocatedRange",
    "AsyncLock",
    "AtomicU32",
    "AtomicU32Array",
    "AtomicU64",
    "AtomicU64Array",
    "Change",
    "ChangeKind",
    "Changes",
    "CorruptLogError",
    "CorruptRecordError",
    "Distribution",
    "FileBackend",
    "FileState",
    "FileStatistics",
    "FlushError",
    "FlushPolicy",
    "ForkedError",
    "Generations",
    "Hub",
    "LeasedRange",
    "LiveFolder",
    "LiveSnapshot",
    "Log",
    "LogError",
    "LogReceipt",
    "LogRecord",
    "LogSegment",
    "LogStatistics",
    "MappedBackend",
    "MappedFile",
    "MappedFileError",
    "MappingFaultError",
    "Opening",
    "OutOfBoundsError",
    "OverlapError",
    "RangeAllocator",
    "ReceiptError",
    "Records",
    "RecordsDiscardedError",
    "Recovered",
    "Residency",
    "Snapshot",
    "SnapshotFile",
    "StaleSnapshotError",
    "StorageBackend",
    "Subscription",
    "UnsupportedError",
    "View",
    "WriteReceipt",
    "align_down",
    "align_up",
    "follow",
    "follow_folder",
    "open",
    "open_memory",
)


def _adopt() -> None:
    """Make tracebacks, reprs, pickles and ``help`` name this package as the module of each class.

    This includes private base classes, because ``help`` names them. Classes in C already have it.
    """
    for name in __all__:
        value = globals()[name]
        for place in getattr(value, "__mro__", (value,)):
            if getattr(place, "__module__", "").startswith(f"{__name__}._"):
                place.__module__ = __name__


_adopt()
del _adopt
