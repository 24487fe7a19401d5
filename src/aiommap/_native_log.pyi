"""The contract of the native module, as far as logs go: frames, cursors, and the writer.

Conventions as in ``_native.pyi``, which has all of these; "waits" says what is for worker threads.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Self, final, overload

from typing_extensions import Buffer

from ._native_pool import PoolCommit, PoolQueue

@overload
def crc32c(data: Buffer, crc: int = 0, /) -> int:
    """Continue a CRC32C."""

@overload
def crc32c(data: Buffer, crc: int, way: int, /) -> int | None:
    """The same by one way, for tests; None if it cannot be taken (``enum crc32c_way``)."""

def search_frames(
    fd: int, salt: int, position: int, offset: int, end: int, sequence: int, base: int, /
) -> tuple[int, int, int, int, int]:
    """Search a segment for good frames at any multiple of 8 from ``offset`` on (waits).

    ``position`` is that of the byte at ``offset``; sequences below ``sequence``, or higher than fit
    behind ``base``, are not looked for. Returns the highest sequence that one of them says is
    durable, how many records there are, the highest life, where the last frame ends, or -1, and of
    how many bytes a checksum was made.
    """

def find_record(
    fd: int, salt: int, position: int, offset: int, end: int, sequence: int, base: int, /
) -> tuple[int, int, int] | None:
    """Search likewise, up to the first record: its sequence, offset and life (waits)."""

def start_writeback(fd: int, offset: int, length: int, /) -> None:
    """Begin to write a range of a file back: sync_file_range(2) (waits)."""

class LogRecord:
    """Base of the public class, which a LogCursor makes instances of."""

    sequence: int
    data: bytes
    life: int

    def __new__(cls, sequence: int, data: bytes, life: int) -> Self: ...

class LogCursor:
    """A place in a segment, and the records from there on. For one thread at a time.

    ``__anext__`` gives the records that were granted, and else what the coroutine function
    ``_advance`` of a subclass does.
    """

    fd: int
    sequence: int  # of the next record
    position: int  # of the next frame
    offset: int  # of the next frame, in the file
    life: int
    last_crc: int
    proof: int  # settable: the highest sequence that a frame said is durable
    state: int  # why the last take ended: 0 limit, 1 not in memory, 2 END frame passed, 3 no fit

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
        """Make the next record below an offset of the file; None if there is none yet.

        Inline unless ``waits``: it reads no more than the page cache has. Grants as many as
        ``more`` of those that were read with it. Behind an END frame there is none.
        """

    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Coroutine[Any, Any, Any]:
        """Take it when it is awaited."""

    def leave(self) -> None:
        """Grant nothing more."""

    def seek(self, until: int, end: int, /) -> tuple[int, int, int, int]:
        """Pass frames up to the record ``until``, the END frame, or where none fits (waits).

        Returns how many records were passed, what the last DISCARD frame said or 0, the offset of
        the END frame or -1, and the offset behind the record ``proof``. That is behind an earlier
        one, or where the walk began, if ``proof`` is not among those passed, or was said too late
        to know where it ended.
        """

@final
class LogWriter:
    """Lays frames out, stores and publishes them. For one thread at a time.

    The claim of each frame is worked out of ``durable``. OSError where a call failed: then nothing
    of it has a place.
    """

    fd: int
    at: int  # settable: where the next frame comes, in the file
    limit: int  # settable: where the segment is full
    base: int
    sequence: int  # settable: of the next record
    durable: int  # settable: the last record that is durable
    life: int  # settable
    position: int  # of the next frame
    waited: bool  # settable: an inline store had to wait for something

    def __new__(cls, control_fd: int, /) -> Self:
        """Map a control file; the descriptor is not kept."""

    def enter(
        self, fd: int, salt: int, position: int, base: int, sequence: int, at: int, limit: int, /
    ) -> None:
        """Go on in a segment whose byte 4096 has this position."""

    def close(self) -> None:
        """Give the control file up; nothing is stored or published afterwards (waits)."""

    def bind_loop_thread(self) -> None:
        """Let ``append`` answer in this thread, and in no other."""

    def append(self, data: Buffer, /) -> int | None:
        """Store and publish one record, inline; None if it is large or does not fit."""

    def store(self, items: list[Any], start: int, /) -> int:
        """Store as many items from ``start`` on as fit into the segment; how many (waits)."""

    def begin_commit(
        self,
        queue: PoolQueue,
        items: list[Any],
        sync: bool,
        tell: Callable[[PoolCommit], object],
        /,
    ) -> PoolCommit | None:
        """Store all items, sync if wanted, and publish.

        None if that is not one store, or the pool cannot.

        The outcome is 0 and an errno if the store failed, 1 and an errno if the sync did, 2 and an
        errno or 0 for the rest.
        """

    def mark(self, kind: int, data: Buffer, /) -> int:
        """Store a frame that is no record, room or not; its checksum (waits)."""

    def sync(self) -> None:
        """Make all of the segment durable (waits); EIO, ESTALE if it was cut off or unlinked."""

    def publish(self) -> None:
        """Tell readers how far the log goes, and how far it is durable, and wake them."""

    def set_word(self, at: int, value: int, /) -> None:
        """Store one word of the control file, and wake who waits."""
