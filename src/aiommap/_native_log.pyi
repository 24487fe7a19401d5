"""The part of the contract of the native module for logs: frames, cursors, and the writer.

The conventions are those of ``_native.pyi``, which exports all names here. "(waits)" marks calls
for worker threads.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self, final, overload

from typing_extensions import Buffer

from ._native_pool import Awaited, PoolCommit, PoolQueue, Tell

@overload
def crc32c(data: Buffer, crc: int = 0, /) -> int:
    """Continue a CRC32C."""

@overload
def crc32c(data: Buffer, crc: int, way: int, /) -> int | None:
    """The same by one way, for tests; None if the machine lacks it (``enum crc32c_way``)."""

def search_frames(
    fd: int, salt: int, position: int, offset: int, end: int, sequence: int, base: int, /
) -> tuple[int, int, int, int, int]:
    """Search a segment for good frames at any multiple of 8 from ``offset`` on (waits).

    ``position`` is the position of the byte at ``offset``. Frames with a sequence below
    ``sequence``, or above the highest that fits behind ``base``, do not count. Returns the highest
    sequence that a frame says is durable, the number of records, the highest life, the end of the
    last frame or -1, and the number of bytes for which a checksum was made.
    """

def find_record(
    fd: int, salt: int, position: int, offset: int, end: int, sequence: int, base: int, /
) -> tuple[int, int, int] | None:
    """Search in the same way for the first record; return its sequence, offset and life (waits)."""

def start_writeback(fd: int, offset: int, length: int, /) -> None:
    """Begin to write a range of a file back: sync_file_range(2) (waits)."""

class LogRecord:
    """Base of the public class, of which a LogCursor makes instances."""

    sequence: int
    data: bytes
    life: int

    def __new__(cls, sequence: int, data: bytes, life: int) -> Self: ...

class LogReceipt:
    """Base of the public class, of which LogGather and LogWriter make instances."""

    sequence: int
    count: int

    def __new__(cls, owner: Any, sequence: int, count: int = 1) -> Self: ...

@final
class LogWait(Awaited):
    """What a task awaits for the receipt of one append."""

@final
class LogGather:
    """Where appends join the batch of a log that gathers, and are answered; for one loop thread."""

    def __new__(
        cls,
        receipt_type: type[LogReceipt],
        loop: object,
        call_soon: Callable[..., object],
        max_record: int,
        /,
    ) -> Self:
        """Serve a loop of asyncio; ``max_record`` is the size of the largest record."""

    def open(self, items: list[Any], waits: list[Any], /) -> None:
        """Let records join a batch, by its lists."""

    def shut(self) -> None:
        """Let none join until ``open``."""

    def refuse(self) -> None:
        """Let none join any more."""

    def set_limit(self, items: int, /) -> None:
        """Set how many items share a batch; who fills one has to come by the queue."""

    def join(self, owner: Any, data: Any, /) -> LogWait | None:
        """Have a record join; return what to await for its receipt, or None if it cannot.

        ``owner`` is the log of the receipt.
        """

    def wait(self, owner: Any, /) -> LogWait:
        """Make what to await for the receipt of a record that comes by the queue."""

    def hold(self) -> None:
        """Keep the next answer until ``wake``."""

    def answer(
        self, waits: list[Any], outcomes: Sequence[Any], then: Callable[[bool], object], /
    ) -> None:
        """Answer each: a number is the sequence of its record, anything else an error to raise.

        Whatever is no ``LogWait`` gets ``set_result``. After ``hold``, ``wake`` does it, else the
        loop wakes the tasks in its next turn. Then call ``then`` with whether they have run.
        """

    def wake(self) -> None:
        """Give the answer that was held; if no task of the loop runs, run those that waited.

        What ends the program in one of them leaves this when all are answered.
        """

class LogCursor:
    """A place in a segment, and the records from there on. For one thread at a time.

    ``__anext__`` returns the records that ``take`` granted. When there are no more, it awaits the
    coroutine function ``_advance`` of the subclass.
    """

    fd: int
    sequence: int  # of the next record
    position: int  # of the next frame
    offset: int  # of the next frame, in the file
    life: int
    last_crc: int
    proof: int  # settable: the highest sequence that a frame said is durable
    state: int  # why the last take ended: 0 limit, 1 not in memory, 2 END frame, 3 no good frame

    def __new__(cls, record_type: type[LogRecord], /) -> Self: ...
    def enter(
        self,
        fd: int,
        salt: int,
        position: int,
        offset: int,
        sequence: int,
        life: int,
        in_memory: bool,
        /,
    ) -> None:
        """Go to a frame of an open segment; ``in_memory`` says that reads never wait."""

    def take(self, end: int, waits: bool, more: int, /) -> Any:
        """Return the next record below an offset of the file; None if there is none yet.

        Inline unless ``waits``: then it reads only what the page cache has. It also grants up to
        ``more`` records that it read along with this one. Behind an END frame there is no record.
        """

    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Coroutine[Any, Any, Any]:
        """Return the next record when it is awaited."""

    def leave(self) -> None:
        """Take back the records that were granted."""

    def seek(self, until: int, end: int, /) -> tuple[int, int, int, int]:
        """Pass frames up to the record ``until``, the END frame, or the last good frame (waits).

        Returns how many records were passed, the sequence of the last DISCARD frame or 0, the
        offset of the END frame or -1, and the offset behind the record ``proof``. If that record
        was not passed, or a frame named it too late to know where it ended, the last is the offset
        behind an earlier record, or where the walk began.
        """

@final
class LogWriter:
    """Lays frames out, stores and publishes them. For one thread at a time.

    The claim of each frame is computed from ``durable``. If a system call fails, the method raises
    OSError, and none of its frames counts as stored.
    """

    fd: int
    at: int  # settable: the offset of the next frame in the file
    limit: int  # settable: the offset at which the segment is full
    base: int
    sequence: int  # settable: of the next record
    durable: int  # settable: the last record that is durable
    life: int  # settable
    position: int  # of the next frame
    waited_ns: int  # when an inline store last had to wait, by the monotonic clock; 0 for never
    granted_until: int  # settable: the offset up to which ``append_granted`` may store
    inline_appends: int

    def __new__(cls, control_fd: int, /) -> Self:
        """Map a control file, without keeping the descriptor."""

    def enter(
        self, fd: int, salt: int, position: int, base: int, sequence: int, at: int, limit: int, /
    ) -> None:
        """Go on in a segment; ``position`` is that of its byte 4096."""

    def close(self) -> None:
        """Give the control file up; afterwards store and publish nothing (waits)."""

    def bind_loop_thread(self, receipt_type: type[LogReceipt], /) -> None:
        """Let ``append`` answer in this thread only, by receipts of this type."""

    def append(self, owner: Any, data: Buffer, /) -> Any:
        """Store and publish one record, inline; None if it is large or does not fit.

        ``owner`` is the log of the receipt that it returns.
        """

    def append_granted(self, owner: Any, data: object, /) -> Any:
        """Do the same with ``bytes`` below ``granted_until``, while the time slice lasts; or None.

        A store that fails, or has to wait, takes the grant back.
        """

    def store(self, items: list[Any], start: int, /) -> int:
        """Store as many items from ``start`` on as fit; return how many that were (waits)."""

    def begin_commit(
        self,
        queue: PoolQueue,
        items: list[Any],
        sync: bool,
        tell: Tell,
        /,
    ) -> PoolCommit | None:
        """Store all items, sync them if ``sync``, and publish.

        None if the items are more than one store, or the pool cannot do it.

        The outcome is 0 and an errno if the store failed, 1 and an errno if the sync failed, 2 and
        an errno or 0 for the rest.
        """

    def mark(self, kind: int, data: Buffer, /) -> int:
        """Store a frame that is not a record, with or without room; return its checksum (waits)."""

    def sync(self) -> None:
        """Make the segment durable (waits); ENODATA if it was cut off, ESTALE if unlinked."""

    def publish(self) -> None:
        """Tell readers the tail and the durable sequence, and wake them."""

    def set_word(self, at: int, value: int, /) -> None:
        """Store one word of the control file, and wake the tasks that wait for it."""
