"""The contract of the native module: mapped pages, guarded copies, and no waiting with the GIL.

Conventions. Offsets and lengths are bytes from the start of the file, plain ``int``. Every verb
checks its range against ``Mapping.size`` before it forms an address (I3). It raises
``OutOfBoundsError`` for a range that leaves the size, even if the file became shorter while the
verb ran. Native code rounds to pages. *Inline* verbs run on the loop thread, never wait, and
decline by None if they cannot answer at once. All others may wait, and release the GIL while they
do (I2). A count short of the request means a fault behind it. System calls raise ``OSError``.
"""

from typing import Any, Literal, Protocol, Self, SupportsIndex, TypeAlias, final, overload

from typing_extensions import Buffer

from ._native_blocks import Blocks as Blocks
from ._native_blocks import punch_hole as punch_hole
from ._native_log import LogCursor as LogCursor
from ._native_log import LogGather as LogGather
from ._native_log import LogReceipt as LogReceipt
from ._native_log import LogRecord as LogRecord
from ._native_log import LogWriter as LogWriter
from ._native_log import crc32c as crc32c
from ._native_log import find_record as find_record
from ._native_log import search_frames as search_frames
from ._native_log import start_writeback as start_writeback
from ._native_pool import Pool as Pool
from ._native_pool import PoolCommit as PoolCommit
from ._native_pool import PoolQueue as PoolQueue
from ._native_pool import PoolRead as PoolRead
from ._native_pool import Tell

#: A checked write: an offset, and the bytes to store there.
_Store: TypeAlias = tuple[int, bytes | memoryview]

PAGE_SIZE: int
"""Bytes of a page of memory, the unit in which files are mapped; as the system reports it."""

#: One system call or copy never handles more than this many bytes.
PIECE_BYTES: int
#: How many pieces ``Mapping.append`` takes.
APPEND_PIECES: int
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
LOCAL: int  # pwrite(2) ends in the page cache, and asks no server
STABLE_PAGES: int  # a store waits for the write-back of its folio
#: How many words one Wakeup.wait takes.
MAX_WAIT_WORDS: int
MADV_NORMAL: int
MADV_RANDOM: int
MADV_SEQUENTIAL: int
MADV_WILLNEED: int
MADV_DONTNEED: int
# The next four are -1 except on Linux.
MADV_HUGEPAGE: int
MADV_NOHUGEPAGE: int
MADV_COLD: int
MADV_PAGEOUT: int

def sync_filesystem(descriptor: int, /) -> None:
    """syncfs(2)."""

def append_zeros_to(fd: int, length: int, sparse: bool, /) -> None:
    """Make a file at least this long while others may append to it; never shorter (waits).

    Blocks are reserved unless sparse. If the disk is full, the length stays as it is.
    """

def filesystem_type(fd: int, /) -> int:
    """Return the magic number of statfs(2); 0 if the platform has none."""

def read_file(fd: int, offset: int, length: int, /) -> bytes:
    """Read a descriptor without any mapping; shorter than ``length`` only at the end (waits)."""

@overload
def export_bytes(data: object, /) -> bytes | memoryview: ...
@overload
def export_bytes(data: object, writable: Literal[True], /) -> memoryview:
    """View any C-contiguous memory as bytes; its owner cannot move or free it meanwhile.

    A ``bytes`` object is returned as it is, unless the memory has to be writable.

    Raises:
        TypeError: if it is not a buffer, holds Python objects, or has to be writable and is not.
        BufferError: if it is not C-contiguous.
    """

def find_bytes(data: Buffer, needle: Buffer, last: bool, /) -> int:
    """Return the first or last place of a needle that is not empty, or -1; in linear time."""

def sigbus_blocked() -> bool:
    """Tell whether this thread blocks SIGBUS: then a foreign fault in it kills the process."""

# The time slice of this thread.
def time_slice_spent() -> bool: ...  # whether the thread has to give way
def time_slice_yield() -> int: ...  # count a yield; return how many there were before
def time_slice_renew(before: int, /) -> None: ...  # grant a slice to all that yielded since then
def time_slice_wake(tasks: int, /) -> None: ...  # and to this many tasks that wake next turn

@final
class Mapping:
    """One open file, mapped. Owns the descriptor from the moment the constructor returns."""

    fd: int  # -1 once closed
    min_kept_length: int  # settable: the bytes that somebody asked for, or a verb wrote
    growable_leases: int
    closed: bool
    nowait: bool  # reads through the descriptor can be tried without waiting
    in_memory: bool  # on tmpfs or the like, where reads never wait
    residency_visible: bool  # mincore(2) tells the truth about this file
    inline_writes: bool  # settable: whether verbs may store on the loop thread at all
    flush_expected: bool  # settable: the policy flushes in the background; stores prefer pwrite(2)
    remapping: bool  # settable: locked pages are being remapped, and none counts as locked
    gathered: int  # how many stores are gathered and not yet applied
    pwriting: bool  # the loop thread is in pwrite(2)
    declining: bool  # settable: inline verbs decline
    cut_suspected: bool  # settable: a store may have hidden that others cut the file
    generation: int  # grows when a change of size, fence or region begins and ends, and at close
    sequence: int
    durable_sequence: int  # settable
    written_bytes: int
    lease_count: int
    writable_leases: int
    ended_leases: int  # how many writable leases have ended
    dirty_since: int  # CLOCK_MONOTONIC nanoseconds of the oldest dirty page; 0 if there is none
    writeback_since: int  # the same for the pages that a flush in flight is writing
    inline_reads: int
    fell_back_reads: int
    fell_back_writes: int
    inline_writes_done: int
    inline_pwrites: int  # how many inline writes made a system call
    capacity: int
    address: int
    forked: bool  # this process is a forked child of the one that made the mapping
    current: bool  # False once overlayfs has copied the file up
    damage_errno: int
    foreign_faults: int
    usable: bool  # open, in this process, not poisoned, and not declining
    faults: int

    def __new__(cls, fd: int, size: int, capacity: int, flags: int) -> Self:
        """Map max(size, capacity) bytes, rounded up to pages; for 0 bytes map nothing.

        ``flags`` is a sum of WRITABLE, PRIVATE_COPY and so on.
        """

    @property
    def size(self) -> int:
        """Bytes of the file that verbs may address, with all growth so far."""

    @property
    def first_bad(self) -> int | None:
        """Offset of the first page that a foreign load or store could not reach, or None.

        The signal handler has laid a page of zeros there. Since then inline verbs decline, and
        copies count 0 bytes.
        """

    def attach(self, owner: object, receipt_type: type[Receipt], /) -> None:
        """Set the type of receipts and their owner, and bind the loop thread."""

    def bind_loop_thread(self) -> None:
        """Let read_inline, read_into_inline and write_inline answer in this thread only.

        Before the first ``attach`` they answer in any thread.
        """

    def close(self) -> None:
        """Close the descriptor and release the mapping; leases keep their pages (I7)."""

    # Inline verbs.
    def read_inline(self, offset: int, length: int, /) -> bytes | None:
        """Read at most 1 MiB, within the time slice of the thread."""

    def read_into_inline(self, offset: int, buffer: Buffer, /) -> int | None:
        """Fill a writable contiguous buffer, as read_inline does."""

    def read_nowait(self, offset: int, length: int, /) -> bytes | None:
        """Read any length, even if the time slice is spent."""

    def write_inline(self, offset: int, data: Buffer, /) -> Receipt | None:
        """Store at most 64 KiB into pages that are present, or into one hole, within the limits.

        It also declines if a fault stops it half-way: a worker then repeats it and finds out why.
        """

    def write_now(self, offset: int, data: Buffer, /) -> Receipt | None:
        """Store as write_inline does, without regard to the time slice and the inline limits."""

    def stage(self, offset: int, data: Buffer, /) -> _Store | None:
        """Check a write and export its bytes for write_many; None if the check fails."""

    # Stores of tasks that woke together, on the loop thread; see py/gather.h.
    def expect_stores(self, tasks: int, /) -> None: ...  # this number of tasks wakes now
    def gather(self, offset: int, data: Buffer, /) -> Receipt | None: ...  # sequence 0 until stored
    def store_gathered(self) -> list[tuple[Receipt, int, bytes | memoryview]]: ...  # returns a rest
    def withdraw(self, receipt: Receipt, /) -> bool: ...  # whether it was gathered until now
    def gathers(self, start: int, end: int, /) -> bool: ...  # whether for a part of the range

    # Verbs that may wait.
    def read(self, offset: int, length: int, /) -> bytes:
        """Read; a result shorter than asked for means a fault at its end."""

    def read_into(self, offset: int, buffer: Buffer, /) -> int:
        """Fill a writable contiguous buffer; return the number of bytes read."""

    def write_many(self, items: list[_Store], /) -> list[Receipt | tuple[int, int]]:
        """Store in list order; a receipt for each, or (bytes copied, errno) if it stopped short.

        The errno says why pwrite(2) was short; it is 0 for a fault. If 0 bytes were copied, the
        pages cannot be reached, or the file became shorter after the check.
        """

    def begin_commit(self, queue: PoolQueue, items: list[Any], tell: Tell, /) -> PoolCommit | None:
        """Store, fdatasync(2) and stat; None if other bytes are dirty, or the pool cannot do it.

        The outcome has the receipts, whether no other write was counted, the bytes of the flushed
        pages, the end of the last store, and the result of ``stat``. The pages stay in writeback
        until ``end_writeback``. If a store stopped short, the outcome is that of ``write_many``. If
        the flush failed, it is the errno, and the stored pages are dirty.
        """

    def append_through(self, descriptor: int, /) -> None:
        """Append through a descriptor of the same file with O_APPEND from now on, and own it."""

    def append(self, pieces: list[bytes | memoryview], /) -> tuple[int, int, int]:
        """Write pieces at the end, in one call; at most APPEND_PIECES.

        Returns where they begin, how many bytes were written, and the errno if not all were. Then
        only whole pieces were written. With ``append_through`` a part of one may be left: others
        may have appended behind it, so it is not cut off. EAGAIN means that others changed the
        length, and nothing was done. ``file_end`` moves, and ``size`` does not.
        """

    def count_appended(self, start: int, end: int, lengths: list[int], /) -> list[Receipt] | None:
        """Let verbs address the file up to ``end``, and count the pieces as stored.

        None if that needs a change first, because of a fence or of too little capacity.
        """

    def awaits_flush(self, receipt: Receipt, /) -> bool: ...  # whether it is not known durable
    def begin_flush(self, queue: PoolQueue, asked: list[Any], tell: Tell, /) -> PoolCommit | None:
        """fdatasync(2) and stat, for receipts or ranges; None if the pool cannot do it.

        The outcome is that of ``begin_commit`` without its first two parts, and the flushed runs.
        """

    def sync(self, metadata: bool, /) -> None:
        """fsync(2) or fdatasync(2); F_FULLFSYNC on macOS."""

    def stat(self) -> tuple[int, int]:
        """Return the size of the file and how many names it has; statx(2) without the times."""

    def sync_range(self, offset: int, length: int, /) -> None:
        """msync(2) with MS_SYNC."""

    def start_writeback(self, offset: int, length: int, /) -> None:
        """sync_file_range(2) with SYNC_FILE_RANGE_WRITE."""

    def read_ahead(self, offset: int, length: int, /) -> None:
        """posix_fadvise(2) with POSIX_FADV_WILLNEED."""

    def populate(self, offset: int, length: int, write: bool, /) -> int:
        """Make at most PIECE_BYTES present, and dirty if ``write``; return the bytes handled.

        EFAULT means that a page cannot be reached, EINVAL that the kernel lacks the call.
        """

    def advise(self, offset: int, length: int, advice: int, /) -> None:
        """madvise(2)."""

    def lock(self, offset: int, length: int, /) -> None:
        """mlock2(2): the pages are present when it returns."""

    def lock_later(self, offset: int, length: int, /) -> None:
        """mlock2(2) with MLOCK_ONFAULT: absent pages are locked when they become present."""

    def unlock(self, offset: int, length: int, /) -> None:
        """munlock(2)."""

    def residency(self, offset: int, length: int, /) -> tuple[int, int, list[tuple[int, int]]]:
        """Resident pages, pages of the range, resident byte ranges (mincore(2))."""

    def cachestat(self, offset: int, length: int, /) -> tuple[int, int, int, int, int]:
        """Pages cached, dirty, in write-back, evicted, recently evicted (cachestat(2))."""

    def punch_hole(self, offset: int, length: int, /) -> None:
        """fallocate(2) with FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE."""

    # Accounting; short, with the GIL.
    def begin_writeback(self, offset: int, length: int, /) -> list[tuple[int, int]]:
        """Take the dirty runs of a range; inline stores avoid them until ``end_writeback``."""

    def end_writeback(self, failed: list[tuple[int, int]], /) -> None:
        """End the flush and mark the runs that did not reach the disk dirty again."""

    def dirty_runs(self) -> list[tuple[int, int]]:
        """Return the byte ranges stored to since their last flush, or writable through a lease."""

    def oldest_leases(self, limit: int, /) -> list[tuple[int, int, str | None]]:
        """Return offset, end and place of at most ``limit`` live leases, oldest first."""

    def dirty_bytes(self) -> int:
        """Return the number of bytes in the pages of dirty_runs."""

    def would_dirty(self, offset: int, length: int, /) -> int:
        """Return the bytes that a store would leave dirty or in writeback; leases do not count."""

    def set_inline_limits(self, written_bytes: int, sequence: int, dirty_bytes: int, /) -> None:
        """Set the counts that write_inline may not reach, and how many bytes may be dirty in all.

        NO_LIMIT stands for no limit.
        """

    def set_queued(self, start: int, end: int, /) -> None:
        """Set the range in which writes wait for a worker: inline stores decline there (I9)."""

    def set_locked(self, offset: int, length: int, locked: bool, /) -> None:
        """Say whether mlock(2) keeps all pages of a range in memory."""

    def lease(
        self,
        offset: int,
        length: int,
        writable: bool,
        place: str | None = None,
        anchor: object = None,
        /,
    ) -> Lease:
        """Export a range as a buffer that keeps its pages mapped.

        ``oldest_leases`` returns ``place``. The anchor lives for as long as the lease.
        """

    # Changes. Each is one step: nobody sees a part of it, and it fails without any effect. Only one
    # runs at a time. Views of bytes that the file gives up read zeros.
    @property
    def fenced(self) -> bool:
        """Whether some pages are fenced; growing maps these pages again, unlocked."""

    def rebase(self, capacity: int, /) -> None:
        """Map the file over a larger range, with unlocked pages; leases keep the old range."""

    def truncate(self, length: int, /) -> None:
        """Make the file this long, but never longer than it was, and set ``size`` to that.

        While there are growable leases, the file ends with zeros up to a page boundary.
        """

    def extend(self, size: int, end: int, back: int, min_kept: int, /) -> None:
        """Make the file at least ``end`` bytes long, and raise ``size``, within the capacity.

        If that fails the file is ``back`` bytes long again, unless a store has made it longer. The
        minimum kept length becomes at least ``min_kept``.
        """

    def adopt(self, size: int, end: int, forget: bool, /) -> None:
        """Set ``size`` to the length that others gave the file, within the capacity.

        If the file does not end at ``end``, it is made that long. With ``forget``, growth continues
        from ``size``, and the growth by stores until now is forgotten.
        """

    # Growing by stores beyond the end.
    file_end: int  # where we made the file end: at ``size``, or at a page boundary behind it
    grown: int  # where a store through a growable lease made the file end; 0 after a truncate
    growing: bool  # such a store, or a truncate, is changing the length at this moment
    reserved_end: int  # the end of the blocks that stores reserved; may lie behind ``file_end``

    def lease_growable(self, offset: int, length: int, place: str | None = None, /) -> Lease:
        """Export a range within the capacity; a store beyond ``file_end`` moves ``file_end``."""

    def take_growth(self) -> bool:
        """Tell whether stores have made the file longer since the last call."""

    def stop_growth(self) -> None:
        """End growth: from now on bytes beyond the end read as zeros, and stores there are lost."""

@final
class Lease:
    """A buffer over part of a mapping; read-only unless it was taken writable."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Receipt:
    """Base of WriteReceipt, with the fields that native code fills."""

    offset: int
    length: int
    sequence: int
    _owner: Any
    _settled: bool

    def __new__(cls, owner: object, offset: int, length: int, sequence: int, /) -> Self: ...

class _WordPolicy(Protocol):
    """The policy that words ask, in the thread that uses the word."""

    @property
    def core(self) -> Any: ...
    def check(self, offset: int, length: int, store: bool, /) -> None:
        """Raise if an operation is forbidden; called only if the mapping does not allow it."""

    def fault(self, offset: int, size: int, number: int, /) -> None:
        """Raise the error for a fault; ``size`` is that of the file, or -1 if it is unknown."""

    def stored(self) -> None:
        """Learn that a store has reached the inline limits."""

class Word:
    """A word of 4 or 8 bytes with atomic operations; base of AtomicU32 and AtomicU64.

    An operation releases the GIL and may wait if the page is not known to be in memory; a store
    also if a flush is writing the page. All others take a fraction of a microsecond.
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
        """FUTEX_WAKE; return how many waiters the kernel woke."""

class WordArray:
    """Words side by side; the first argument of each operation is the number of the word."""

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
    """Lets a thread wait for words and for ``wake`` at once; a private futex."""

    def count(self) -> int:
        """Return how often ``wake`` was called, modulo 2**32."""

    def wake(self) -> None:
        """Wake the thread that waits, or that soon will."""

    def wait(self, count: int, words: list[tuple[Word, int]], /) -> list[tuple[int, int]]:
        """Wait until a word is notified or differs, or until ``wake`` was called since ``count``.

        Returns ``(number, 0)`` for each word that differs from its expected value or cannot be
        reached, and ``(number, errno)`` for each word for which the kernel cannot wait. Takes at
        most MAX_WAIT_WORDS words, of 4 bytes each.
        """
