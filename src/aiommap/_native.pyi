"""The contract of the native module: mapped pages, guarded copies, and no waiting with the GIL.

Conventions. Offsets and lengths are bytes from the start of the file, plain ``int``, checked
against ``Mapping.size`` before an address is formed (I3); a range that leaves it, also because the
file was made shorter while the verb was at work, is an ``OutOfBoundsError``. Page rounding is done
inside. Verbs marked *inline* run on the loop thread, never wait, and return None when they cannot
answer at once; all others may wait and release the GIL while they do (I2). A count short of the
request is a fault: the page behind the next byte cannot be reached. System call errors are raised
as ``OSError``.
"""

from typing import Any, Literal, Protocol, Self, SupportsIndex, TypeAlias, final, overload

from typing_extensions import Buffer

from ._native_log import LogCursor as LogCursor
from ._native_log import LogRecord as LogRecord
from ._native_log import LogWriter as LogWriter
from ._native_log import crc32c as crc32c
from ._native_log import find_record as find_record
from ._native_log import search_frames as search_frames
from ._native_log import start_writeback as start_writeback

#: A write that was checked: an offset, and the bytes to store there.
_Store: TypeAlias = tuple[int, bytes | memoryview]
_Commit: TypeAlias = tuple[list[Receipt], bool, int, int, tuple[int, int]]

PAGE_SIZE: int
"""Bytes of a page of memory, the unit in which files are mapped; asked of the system."""

#: One system call or copy never handles more than this many bytes.
PIECE_BYTES: int
#: A limit that no count reaches.
NO_LIMIT: int
# Flags of Mapping.
WRITABLE: int  # stores are allowed
PRIVATE_COPY: int  # stores never reach the file
HUGE: int  # use huge pages
NOWAIT: int  # the kernel has reads that do not wait
IN_MEMORY: int  # reads of the file never wait: it is on tmpfs or the like
RESIDENCY_VISIBLE: int  # mincore(2) tells the truth about the file
SPARSE: int  # stores that make the file longer reserve no blocks
#: How many words one Wakeup.wait can be given.
MAX_WAIT_WORDS: int
MADV_NORMAL: int
MADV_RANDOM: int
MADV_SEQUENTIAL: int
MADV_WILLNEED: int
MADV_DONTNEED: int
# The next four exist on Linux only.
MADV_HUGEPAGE: int
MADV_NOHUGEPAGE: int
MADV_COLD: int
MADV_PAGEOUT: int

def sync_filesystem(descriptor: int, /) -> None:
    """syncfs(2)."""

def filesystem_type(fd: int, /) -> int:
    """Return the magic number of statfs(2); 0 where the platform has none."""

def read_file(fd: int, offset: int, length: int, /) -> bytes:
    """Read a descriptor without any mapping; shorter than ``length`` only at the end (waits)."""

@overload
def export_bytes(data: object, /) -> bytes | memoryview: ...
@overload
def export_bytes(data: object, writable: Literal[True], /) -> memoryview:
    """View any C-contiguous memory as bytes; its owner cannot move or free it meanwhile.

    Bytes that are not to be written are returned as they are.

    Raises:
        TypeError: if it is no buffer, holds Python objects, or has to be writable and is not.
        BufferError: if it is not C-contiguous.
    """

def sigbus_blocked() -> bool:
    """Tell whether this thread blocks SIGBUS: then the kernel kills it for a fault of its own."""

def time_slice_spent() -> bool:
    """Tell whether this thread has to give way before the next inline verb."""

def time_slice_yield() -> int:
    """Count a yield of this thread and return how many there were before it."""

def time_slice_renew(before: int, /) -> None:
    """Grant a time slice, shared by all that yielded since ``time_slice_yield`` said ``before``."""

@final
class Mapping:
    """One open file, mapped. Owns the descriptor from the moment the constructor returns."""

    fd: int  # -1 once closed
    min_kept_length: int  # settable: bytes that were asked for, or written by a verb
    growable_leases: int
    closed: bool
    nowait: bool  # reads through the descriptor can be tried without waiting
    in_memory: bool  # tmpfs and the like, where they never wait
    residency_visible: bool  # mincore(2) tells the truth about this file
    inline_writes: bool  # settable: whether write_inline may store at all
    declining: bool  # settable: inline verbs answer None
    cut_suspected: bool  # settable: a store may have hidden that others cut the file
    generation: int  # how often it changed: size, fence, region, closing; begun and ended count
    sequence: int
    durable_sequence: int  # settable
    written_bytes: int
    lease_count: int
    writable_leases: int
    ended_leases: int  # writable ones that there were
    dirty_since: int  # CLOCK_MONOTONIC nanoseconds of the oldest dirty page; 0 when there is none
    writeback_since: int  # the same, of what a flush in flight is writing
    inline_reads: int
    fell_back_reads: int
    fell_back_writes: int
    inline_writes_done: int
    faults: int

    def __new__(cls, fd: int, size: int, capacity: int, flags: int) -> Self:
        """Map max(size, capacity) bytes, rounded up to pages; nothing at all for 0 bytes."""

    @property
    def size(self) -> int:
        """Bytes of the file that verbs may address, with all growth so far."""

    @property
    def capacity(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def forked(self) -> bool: ...
    @property
    def current(self) -> bool: ...
    @property
    def first_bad(self) -> int | None:
        """Offset of the page that a foreign load or store could not reach first, or None.

        A page of zeros was laid there, so from then on inline verbs answer None and copies count 0.
        """

    @property
    def damage_errno(self) -> int: ...
    @property
    def foreign_faults(self) -> int: ...
    @property
    def leases(self) -> list[tuple[int, int, str | None]]:
        """Offset, end and place of the live leases, newest first."""

    def attach(self, owner: object, receipt_type: type[Receipt], /) -> None:
        """Say what receipts of write_inline are made of and refer to; binds the loop thread."""

    def bind_loop_thread(self) -> None:
        """Let read_inline, read_into_inline and write_inline answer in this thread, and no other.

        They answer in any thread before the first ``attach``.
        """

    def close(self) -> None:
        """Close the descriptor and give up the mapping; leases keep their pages (I7)."""

    # Inline verbs.
    def read_inline(self, offset: int, length: int, /) -> bytes | None:
        """Read at most 1 MiB within the thread's slice."""

    def read_into_inline(self, offset: int, buffer: Buffer, /) -> int | None:
        """Fill a writable contiguous buffer, as read_inline does."""

    def read_nowait(self, offset: int, length: int, /) -> bytes | None:
        """Read any length, whatever the slice says."""

    def write_inline(self, offset: int, data: Buffer, /) -> Receipt | None:
        """Store at most 64 KiB into pages that are present, short of the inline limits.

        None also means that a fault struck in the middle; the worker then finds out why.
        """

    def write_now(self, offset: int, data: Buffer, /) -> Receipt | None:
        """Store as write_inline does, whatever the time slice and the inline limits say."""

    def stage(self, offset: int, data: Buffer, /) -> _Store | None:
        """Check a write and export its bytes, for write_many; None as of write_inline."""

    # Verbs that may wait.
    def read(self, offset: int, length: int, /) -> bytes:
        """Read; a result shorter than asked for is a fault at its end."""

    def read_into(self, offset: int, buffer: Buffer, /) -> int:
        """Fill a writable contiguous buffer; returns the bytes read."""

    def write_many(self, items: list[_Store], /) -> list[Receipt | tuple[int, int]]:
        """Store in list order; a receipt for each, or (bytes copied, errno) if it stopped short.

        The errno says why pwrite(2) was short; it is 0 for a fault. 0 bytes copied means that
        nothing was stored: the pages cannot be reached, or lie beyond a size that was set after
        the range was checked.
        """

    def commit(self, items: list[_Store], /) -> _Commit | list[Receipt | tuple[int, int]] | None:
        """Store, fdatasync(2) and stat, if nothing was dirty before; else None, and do nothing.

        Returns receipts; whether no other write was counted meanwhile; how many bytes of pages
        were flushed; where the last store ends; and what ``stat`` says. The stores count as being
        flushed from then on, until ``flush_end``. If one of them stopped short, nothing is flushed,
        and the result is that of ``write_many``. Raises OSError if the flush failed; what was
        stored is dirty then.
        """

    def sync(self, metadata: bool, /) -> None:
        """fsync(2) or fdatasync(2); F_FULLFSYNC on macOS."""

    def stat(self) -> tuple[int, int]:
        """Size of the open file, and how many names it has; statx(2) without the times."""

    def sync_range(self, offset: int, length: int, /) -> None:
        """msync(2) with MS_SYNC."""

    def start_writeback(self, offset: int, length: int, /) -> None:
        """sync_file_range(2) with SYNC_FILE_RANGE_WRITE."""

    def read_ahead(self, offset: int, length: int, /) -> None:
        """posix_fadvise(2) with POSIX_FADV_WILLNEED."""

    def populate(self, offset: int, length: int, write: bool, /) -> int:
        """Make at most PIECE_BYTES present, dirty if write; the bytes handled.

        EFAULT means that a page cannot be reached, EINVAL that the kernel lacks the call.
        """

    def advise(self, offset: int, length: int, advice: int, /) -> None:
        """madvise(2)."""

    def lock(self, offset: int, length: int, /) -> None:
        """mlock2(2): the pages are present when it returns."""

    def lock_later(self, offset: int, length: int, /) -> None:
        """The same for those pages that are present, and for others once they come."""

    def unlock(self, offset: int, length: int, /) -> None:
        """munlock(2)."""

    def residency(self, offset: int, length: int, /) -> tuple[int, int, list[tuple[int, int]]]:
        """Resident pages, pages of the range, resident byte ranges (mincore(2))."""

    def cachestat(self, offset: int, length: int, /) -> tuple[int, int, int, int, int]:
        """Pages cached, dirty, in write-back, evicted, recently evicted (cachestat(2))."""

    def punch_hole(self, offset: int, length: int, /) -> None:
        """fallocate(2) with FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE."""

    # Bookkeeping; short, with the GIL.
    def flush_begin(self, offset: int, length: int, /) -> list[tuple[int, int]]:
        """Take the dirty runs of a range for a flush; inline stores keep off it from now on."""

    def flush_end(self, failed: list[tuple[int, int]], /) -> None:
        """End the flush and mark the runs that did not reach the disk dirty again."""

    def dirty_runs(self) -> list[tuple[int, int]]:
        """Byte ranges stored to since they were last flushed, or writable through a lease."""

    def dirty_bytes(self) -> int:
        """Bytes in the pages of dirty_runs."""

    def would_dirty(self, offset: int, length: int, /) -> int:
        """Bytes that were dirty or being flushed if this range were stored to; leases aside."""

    def set_inline_limits(self, written_bytes: int, sequence: int, dirty_bytes: int, /) -> None:
        """Say which counts write_inline may not reach, and how much it may make dirty in all.

        NO_LIMIT is out of reach.
        """

    def set_queued(self, start: int, end: int, /) -> None:
        """Say where writes wait for a worker: inline stores must not overtake them (I9)."""

    def set_locked(self, ranges: list[tuple[int, int]], /) -> None:
        """Say which sorted disjoint ranges are pinned and need no residency check."""

    def lease(self, offset: int, length: int, writable: bool, place: str | None = None, /) -> Lease:
        """Export a range as a buffer that keeps its pages mapped; place is for ``leases``."""

    # Changes: each is one step, of which nobody sees a part, and not two at a time. One that fails
    # leaves all as it was. Views of bytes that the file gives up read zeros.
    @property
    def fenced(self) -> bool:
        """Whether zeros lie over some of the pages, so that growing maps them anew, unpinned."""

    def rebase(self, capacity: int, /) -> None:
        """Map the file anew over a larger range, its pages unpinned; leases keep the old one."""

    def truncate(self, length: int, /) -> None:
        """Make the file this long, and address so much of it; it is never longer than it was.

        While there are growable leases, zeros behind that end it at a page boundary.
        """

    def extend(self, size: int, end: int, back: int, min_kept: int, /) -> None:
        """Make the file at least ``end`` bytes long, and address ``size``, within the capacity.

        If that fails it is ``back`` bytes long again, unless a store has made it longer. The
        minimum kept length becomes no less than ``min_kept``.
        """

    def adopt(self, size: int, end: int, forget: bool, /) -> None:
        """Address as many bytes as others have made it long, within the capacity.

        Where ``end`` is not where the file ends, it is made so long; and if ``forget``, growth goes
        on from ``size``, whatever stores have made of it before.
        """

    # Growing by stores beyond the end.
    @property
    def file_end(self) -> int:
        """Where the file was made to end: at ``size``, or at a page boundary behind it."""

    @property
    def grown(self) -> int:
        """Where a store through a growable lease made the file end; 0 if none since a truncate."""

    @property
    def growing(self) -> bool:
        """Whether such a store, or a truncate, is changing the length right now."""

    @property
    def reserved_end(self) -> int:
        """Up to where stores have reserved blocks; may lie behind ``file_end``."""

    def lease_growable(self, offset: int, length: int, place: str | None = None, /) -> Lease:
        """Export a range within the capacity; stores beyond file_end, whole pages, move that."""

    def take_growth(self) -> bool:
        """Tell whether stores have made the file longer since this was asked last."""

    def stop_growth(self) -> None:
        """From now on what lies beyond the end reads as zeros, and stores there are lost."""

@final
class Lease:
    """A buffer over part of a mapping; read-only unless it was taken writable."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Receipt:
    """Base of WriteReceipt: what native code fills in."""

    offset: int
    length: int
    sequence: int
    _owner: Any
    _settled: bool

    def __new__(cls, owner: object, offset: int, length: int, sequence: int, /) -> Self: ...

class _WordPolicy(Protocol):
    """What Words ask, in whatever thread they are used."""

    @property
    def core(self) -> Any: ...
    def check(self, offset: int, length: int, store: bool, /) -> None:
        """Raise what forbids an operation that the mapping does not simply allow."""

    def fault(self, offset: int, size: int, number: int, /) -> None:
        """Raise the error for a fault; the size of the file is -1 if it could not be asked."""

    def stored(self) -> None:
        """Hear that a store has reached the inline limits."""

class Word:
    """A word of 4 or 8 bytes with atomic operations; base of AtomicU32 and AtomicU64.

    An operation on a page that is not known to be in memory, or that a flush is writing, releases
    the GIL and may wait; any other takes a fraction of a microsecond.
    """

    offset: int
    _policy: Any

    def __new__(cls, mapping: Mapping, policy: _WordPolicy, offset: int, width: int, /) -> Self: ...
    def load(self, /, *, order: str = "seq_cst") -> int: ...
    def store(self, value: SupportsIndex, /, *, order: str = "seq_cst") -> None: ...
    def swap(self, value: SupportsIndex, /, *, order: str = "seq_cst") -> int: ...
    def fetch_add(self, value: SupportsIndex, /, *, order: str = "seq_cst") -> int: ...
    def fetch_sub(self, value: SupportsIndex, /, *, order: str = "seq_cst") -> int: ...
    def fetch_and(self, value: SupportsIndex, /, *, order: str = "seq_cst") -> int: ...
    def fetch_or(self, value: SupportsIndex, /, *, order: str = "seq_cst") -> int: ...
    def fetch_xor(self, value: SupportsIndex, /, *, order: str = "seq_cst") -> int: ...
    def compare_exchange(
        self, expected: SupportsIndex, new: SupportsIndex, /, *, order: str = "seq_cst"
    ) -> tuple[bool, int]: ...
    def _notify(self, n: int, /) -> int:
        """FUTEX_WAKE; how many waiters of the kernel were woken."""

class WordArray:
    """Words side by side; the operations of Word, with the number of the word before the values."""

    offset: int
    _policy: Any

    def __new__(
        cls, mapping: Mapping, policy: _WordPolicy, offset: int, width: int, count: int, /
    ) -> Self: ...
    def __len__(self) -> int: ...
    def load(self, index: SupportsIndex, /, *, order: str = "seq_cst") -> int: ...
    def store(
        self, index: SupportsIndex, value: SupportsIndex, /, *, order: str = "seq_cst"
    ) -> None: ...
    def swap(
        self, index: SupportsIndex, value: SupportsIndex, /, *, order: str = "seq_cst"
    ) -> int: ...
    def fetch_add(
        self, index: SupportsIndex, value: SupportsIndex, /, *, order: str = "seq_cst"
    ) -> int: ...
    def fetch_sub(
        self, index: SupportsIndex, value: SupportsIndex, /, *, order: str = "seq_cst"
    ) -> int: ...
    def fetch_and(
        self, index: SupportsIndex, value: SupportsIndex, /, *, order: str = "seq_cst"
    ) -> int: ...
    def fetch_or(
        self, index: SupportsIndex, value: SupportsIndex, /, *, order: str = "seq_cst"
    ) -> int: ...
    def fetch_xor(
        self, index: SupportsIndex, value: SupportsIndex, /, *, order: str = "seq_cst"
    ) -> int: ...
    def compare_exchange(
        self,
        index: SupportsIndex,
        expected: SupportsIndex,
        new: SupportsIndex,
        /,
        *,
        order: str = "seq_cst",
    ) -> tuple[bool, int]: ...

@final
class Wakeup:
    """What a thread waits with, for words and for being woken; a private futex."""

    def count(self) -> int:
        """How often it was woken, modulo 2**32."""

    def wake(self) -> None:
        """Wake the thread that waits, also if it only begins to."""

    def wait(self, count: int, words: list[tuple[Word, int]], /) -> list[tuple[int, int]]:
        """Wait until a word is notified or not what is expected, or it was woken since ``count``.

        Returns ``(number, 0)`` for each word that is not what is expected, or cannot be reached,
        and ``(number, errno)`` for each that the kernel cannot wait for. At most MAX_WAIT_WORDS
        words, of 4 bytes each.
        """
