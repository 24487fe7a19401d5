"""Memory-mapped files for asyncio that never stall the event loop, lie, or die of SIGBUS."""

from __future__ import annotations

from ._advice import Advice as Advice
from ._allocating import RangeAllocator as RangeAllocator
from ._async_lock import AsyncLock as AsyncLock
from ._atomics import AtomicU32 as AtomicU32
from ._atomics import AtomicU32Array as AtomicU32Array
from ._atomics import AtomicU64 as AtomicU64
from ._atomics import AtomicU64Array as AtomicU64Array
from ._backend import FileBackend as FileBackend
from ._backend import MappedBackend as MappedBackend
from ._backend import StorageBackend as StorageBackend
from ._change import Change as Change
from ._change import ChangeKind as ChangeKind
from ._change import FileState as FileState
from ._errors import AccessModeError as AccessModeError
from ._errors import AlignmentError as AlignmentError
from ._errors import FlushError as FlushError
from ._errors import ForkedError as ForkedError
from ._errors import MappedFileError as MappedFileError
from ._errors import MappingFaultError as MappingFaultError
from ._errors import OutOfBoundsError as OutOfBoundsError
from ._errors import OverlapError as OverlapError
from ._errors import ReceiptError as ReceiptError
from ._errors import StaleSnapshotError as StaleSnapshotError
from ._errors import UnsupportedError as UnsupportedError
from ._file import MappedFile as MappedFile
from ._follow import Generations as Generations
from ._follow import LiveSnapshot as LiveSnapshot
from ._follow import follow as follow
from ._hub import Hub as Hub
from ._hub import Opening as Opening
from ._hub import open as open
from ._ledger import AllocatedRange as AllocatedRange
from ._listeners import Subscription as Subscription
from ._native import PAGE_SIZE as PAGE_SIZE
from ._policy import FlushPolicy as FlushPolicy
from ._range_verbs import align_down as align_down
from ._range_verbs import align_up as align_up
from ._receipt import WriteReceipt as WriteReceipt
from ._residency import Residency as Residency
from ._snapshot import Snapshot as Snapshot
from ._snapshot_file import SnapshotFile as SnapshotFile
from ._statistics import Distribution as Distribution
from ._statistics import FileStatistics as FileStatistics
from ._statistics import LeasedRange as LeasedRange
from ._subscribers import Changes as Changes
from ._typed import Records as Records
from ._view import View as View

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
    "LiveSnapshot",
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
    "open",
)


def _adopt() -> None:
    """Make tracebacks, reprs and pickles name the public place, not the file of a class."""
    for name in __all__:
        value = globals()[name]
        if hasattr(value, "__module__"):
            value.__module__ = __name__


_adopt()
del _adopt
