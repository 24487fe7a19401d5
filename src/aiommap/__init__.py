"""Memory-mapped files for asyncio that never stall the event loop, lie, or die of SIGBUS."""

from __future__ import annotations

from ._advice import Advice as Advice
from ._allocating import RangeAllocator as RangeAllocator
from ._async_lock import AsyncLock as AsyncLock
from ._atomics import AtomicU32 as AtomicU32
from ._atomics import AtomicU32Array as AtomicU32Array
from ._atomics import AtomicU64 as AtomicU64
from ._atomics import AtomicU64Array as AtomicU64Array
from ._errors import AccessModeError as AccessModeError
from ._errors import AlignmentError as AlignmentError
from ._errors import FlushError as FlushError
from ._errors import ForkedError as ForkedError
from ._errors import MappedFileError as MappedFileError
from ._errors import MappingFaultError as MappingFaultError
from ._errors import OutOfBoundsError as OutOfBoundsError
from ._errors import OverlapError as OverlapError
from ._errors import ReceiptError as ReceiptError
from ._errors import UnsupportedError as UnsupportedError
from ._file import MappedFile as MappedFile
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
from ._statistics import Distribution as Distribution
from ._statistics import FileStatistics as FileStatistics
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
    "Distribution",
    "FileStatistics",
    "FlushError",
    "FlushPolicy",
    "ForkedError",
    "Hub",
    "MappedFile",
    "MappedFileError",
    "MappingFaultError",
    "Opening",
    "OutOfBoundsError",
    "OverlapError",
    "RangeAllocator",
    "ReceiptError",
    "Residency",
    "Subscription",
    "UnsupportedError",
    "View",
    "WriteReceipt",
    "align_down",
    "align_up",
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
