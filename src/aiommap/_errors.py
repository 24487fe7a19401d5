"""The exceptions of aiommap: each error says what was wrong and carries its numbers.

``__str__`` builds the message from the attributes. So an exception can be pickled, and a handler
reads numbers from attributes instead of parsing text.
"""

from __future__ import annotations

import errno


class MappedFileError(Exception):
    """Root of all errors that aiommap itself defines; never raised directly.

    A missing file, a refused permission and a full disk raise the same ``OSError`` subclasses as
    everywhere in Python. Use of a closed file raises ``anyio.ClosedResourceError``.
    """

    # Not in __new__: if that were overridden, OSError would not set errno in __init__.
    def __init__(self, *args: object) -> None:
        if type(self) is MappedFileError:
            raise TypeError("MappedFileError is abstract: raise one of its subclasses")
        super().__init__(*args)

    def __repr__(self) -> str:
        # Tracebacks of groups, logs of %r and asserts then show the text, not the bare numbers.
        return f"{type(self).__name__}({str(self)!r})"


def name_file(error: BaseException, path: str) -> None:
    """Put the path into an error of the system; errors of this package have it already."""
    if isinstance(error, OSError) and not isinstance(error, MappedFileError):
        error.filename = path


class OutOfBoundsError(MappedFileError, ValueError):
    """A range leaves the mapped file; nothing was touched.

    Attributes:
        offset: first byte asked for, from the start of the file (or of the view).
        length: number of bytes asked for.
        limit: number of bytes that could be addressed.
        reason: the message, if something else was wrong than a range beyond the limit.
    """

    def __init__(self, offset: int, length: int, limit: int, reason: str = "") -> None:
        super().__init__(offset, length, limit, reason)
        self.offset = offset
        self.length = length
        self.limit = limit
        self.reason = reason

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        if self.offset < 0 or self.length < 0:
            return (
                f"asked for {self.length} bytes at offset {self.offset}: offset and length count "
                f"from the start and cannot be negative (there are {self.limit} bytes)"
            )
        return (
            f"asked for bytes [{self.offset}, {self.offset + self.length}) but there are only "
            f"{self.limit}: ask for less"
        )


class AlignmentError(MappedFileError, ValueError):
    """An offset is not a multiple of the alignment that the operation needs.

    Attributes:
        required: the alignment in bytes.
        offset: the offset that is not aligned.
        reason: the message, if that offset is not one that the caller passed.
    """

    def __init__(self, required: int, offset: int, reason: str = "") -> None:
        super().__init__(required, offset, reason)
        self.required = required
        self.offset = offset
        self.reason = reason

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        below = self.offset - self.offset % self.required
        return (
            f"offset {self.offset} is not a multiple of {self.required}: "
            f"use {below} or {below + self.required}"
        )


class AccessModeError(MappedFileError):
    """The file's mode does not allow the operation.

    Attributes:
        operation: the operation, in words.
        mode: the mode with which the file was opened.
        remedy: what to do instead.
    """

    def __init__(self, operation: str, mode: str, remedy: str) -> None:
        super().__init__(operation, mode, remedy)
        self.operation = operation
        self.mode = mode
        self.remedy = remedy

    def __str__(self) -> str:
        return f'cannot {self.operation} a file opened with mode "{self.mode}": {self.remedy}'


class OverlapError(MappedFileError, ValueError):
    """Two ranges that must be disjoint share bytes.

    Attributes:
        first: ``(offset, end)`` of the one range.
        second: ``(offset, end)`` of the other.
        names: the names that the caller gave the two; None if they have none.
    """

    def __init__(
        self,
        first: tuple[int, int],
        second: tuple[int, int],
        names: tuple[object, object] | None = None,
    ) -> None:
        super().__init__(first, second, names)
        self.first = first
        self.second = second
        self.names = names

    def __str__(self) -> str:
        low, high = max(self.first[0], self.second[0]), min(self.first[1], self.second[1])
        one, other = f"[{self.first[0]}, {self.first[1]})", f"[{self.second[0]}, {self.second[1]})"
        if self.names is None:
            pair = f"ranges {one} and {other}"
        else:
            pair = f"{self.names[0]!r} {one} and {self.names[1]!r} {other}"
        return f"{pair} share bytes [{low}, {high}): ask for disjoint ranges"


class ReceiptError(MappedFileError, ValueError):
    """A receipt or an allocated range was used where it is not valid."""


class MappingFaultError(MappedFileError, OSError):
    """A page of the mapping cannot be reached: the file was truncated, or the device failed.

    If a verb met the page, that verb failed, and the file remains usable. If a load or store
    through the memory of a view met it, by NumPy or ``struct`` for instance, the load read zeros,
    or the store never reaches the file. Then the mapping is *poisoned*: every later verb, ``flush``
    and ``aclose`` raises this error.

    Attributes:
        offset: first byte that could not be reached, from the start of the file.
        copied: how many bytes of the operation were done before it.
        size: the size of the file at the time, in bytes; None if it is not known.
        path: the file.
        errno: the operating system's error number; EFAULT if it gave none.
        poisoned: whether a load or store through a view met the page, and the mapping is poisoned.
        discards: whether reopening needs ``discard=True``, because it may lose stores.
    """

    def __init__(
        self,
        offset: int,
        copied: int,
        size: int | None = None,
        path: str = "",
        number: int = errno.EFAULT,
        poisoned: bool = False,
        discards: bool = False,
    ) -> None:
        super().__init__(number, "mapped page cannot be reached", path)
        self.offset = offset
        self.copied = copied
        self.size = size
        self.path = path
        self.poisoned = poisoned
        self.discards = discards

    def __reduce__(self) -> tuple[object, ...]:
        found = (self.offset, self.copied, self.size, self.path, self.errno)
        return type(self), found, self.__dict__

    def __str__(self) -> str:
        head = f"{self.path or 'the mapped file'}: byte {self.offset} cannot be reached"
        if self.poisoned:
            why = _WITHOUT_ROOM.get(self.errno or 0, "the file lost")
            remedy = "reopen the file and check it"
            if self.discards:
                remedy = (
                    "check the file after reopen(discard=True), which lets go of stores that were "
                    "not flushed, or after opening it again"
                )
            return (
                f"{head}: a load or store through a view met a page that {why}, and found zeros "
                "there instead; what was read or stored through views since then cannot be "
                f"trusted: {remedy}"
            )
        tail = f" ({self.copied} bytes were copied before it)"
        if self.size is not None and self.size <= self.offset:
            return (
                f"{head}: the file shrank to {self.size} bytes while it was mapped{tail}; "
                "bytes below that are still usable, reopen to go on with the rest"
            )
        return f"{head}: the device or file system failed to provide its page{tail}"


_WITHOUT_ROOM = {
    errno.ENOSPC: "the disk has no room for",
    errno.EDQUOT: "the disk has no room for",
    errno.EFBIG: "the limit on the size of files (RLIMIT_FSIZE) leaves no room for",
}


class StaleSnapshotError(MappingFaultError):
    """The file of a snapshot was changed in place, or was replaced before it was opened again.

    Attributes:
        offset: 0, because any byte may have changed.
        copied: 0.
        size: the size of the file, in bytes.
        path: the file.
        opened_size: the size that it had when it was opened.
        reason: what is different about an object of a store; "" for a file.
        errno: ESTALE.
    """

    def __init__(self, path: str, opened_size: int, size: int, reason: str = "") -> None:
        super().__init__(0, 0, size, path, errno.ESTALE)
        self.opened_size = opened_size
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.opened_size, self.size, self.reason), self.__dict__

    def __str__(self) -> str:
        if self.reason:
            return (
                f"{self.path} {self.reason} since it was opened as a snapshot: what was read of it "
                "is what it was then, and so are blocks that are cached; open it again for the rest"
            )
        return (
            f"{self.path} was changed since it was opened as a snapshot (of {self.opened_size} "
            f"bytes; it has {self.size}): do not believe what was read, and open it again"
        )


class FlushError(MappedFileError, OSError):
    """A flush failed, so bytes that were written may not be on stable storage.

    The failure latches: every later write, flush and ``aclose`` of the file raises this error,
    because the kernel may report later flushes as successful although it dropped pages. Reads go on
    working. To recover, close the file, open it again and check its bytes.

    If only a step beside the data failed, such as syncing the directory of a new file, nothing is
    lost and nothing latches: ``latched`` is False, and the next flush tries again.

    Attributes:
        path: the file.
        reason: what happened.
        ranges: the ``(offset, end)`` byte ranges that may not be durable.
        errno: the operating system's error number; EIO if it gave none.
        latched: whether every later flush of the file fails, too.
    """

    def __init__(
        self,
        path: str,
        reason: str,
        ranges: tuple[tuple[int, int], ...] = (),
        number: int = errno.EIO,
        *,
        latched: bool = True,
    ) -> None:
        super().__init__(number, reason, path)
        self.path = path
        self.reason = reason
        self.ranges = ranges
        self.latched = latched

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason, self.ranges, self.errno), self.__dict__

    def __str__(self) -> str:
        lost = sum(end - offset for offset, end in self.ranges)
        remedy = "close the file, reopen it and check them" if self.latched else "flush again"
        return (
            f"{self.path}: flush failed: {self.reason}; {lost} bytes in {len(self.ranges)} ranges "
            f"are not known to be durable; {remedy}"
        )


class ForkedError(MappedFileError):
    """The file or its hub belongs to another process; a forked child has to open both again.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path} was opened, or its hub was entered, before this process was forked and "
            "cannot be used in it: open it again here, in a hub of this process (multiprocessing: "
            'use the context "spawn" or "forkserver", which pickle it)'
        )


class LogError(MappedFileError):
    """A log cannot be read on, or written on, in its present state."""


class CorruptRecordError(LogError):
    """A record of a log is damaged; its bytes were not returned.

    The record was durable or published before, so this is not the effect of a power cut. Records
    behind it can be read with ``start=sequence + 1``.

    Attributes:
        path: the file of the segment.
        sequence: the sequence of the record.
        offset: first byte of the record in the file.
    """

    def __init__(self, path: str, sequence: int, offset: int) -> None:
        super().__init__(path, sequence, offset)
        self.path = path
        self.sequence = sequence
        self.offset = offset

    def __str__(self) -> str:
        return (
            f"{self.path}: record {self.sequence} at byte {self.offset} is damaged: restore the "
            f"file, or read on with start={self.sequence + 1}"
        )


class CorruptLogError(LogError):
    """Segments of a log are missing or do not belong together.

    Attributes:
        path: the folder of the log.
        reason: what was found, and what to do.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class RecordsDiscardedError(LogError):
    """The records to be read next were discarded from the log.

    Attributes:
        path: the folder of the log.
        sequence: the sequence of the record that was to be read next.
        first: the sequence of the first record that is still in the log.
    """

    def __init__(self, path: str, sequence: int, first: int) -> None:
        super().__init__(path, sequence, first)
        self.path = path
        self.sequence = sequence
        self.first = first

    @property
    def lost(self) -> int:
        """How many of the records to be read were discarded."""
        return self.first - self.sequence

    def __str__(self) -> str:
        return (
            f"{self.path}: records {self.sequence} to {self.first - 1} were discarded before they "
            f"were read: read on with start={self.first}"
        )


class RemoteError(MappedFileError, OSError):
    """A request to a store failed, or the store did not return the bytes that were asked for.

    Attributes:
        url: the object, without user, password and query.
        offset: first byte that was asked for.
        length: number of bytes; 0 if the request was about the object and not about its bytes.
        reason: what happened.
        status: the HTTP status; None if there was none.
        attempts: number of requests, with the engine's own retries if it tells their number.
        errno: the operating system's error number; EIO if there is none.
    """

    def __init__(
        self,
        url: str,
        reason: str,
        offset: int = 0,
        length: int = 0,
        status: int | None = None,
        attempts: int = 1,
        number: int = errno.EIO,
    ) -> None:
        super().__init__(number, reason, url)
        self.url = url
        self.reason = reason
        self.offset = offset
        self.length = length
        self.status = status
        self.attempts = attempts

    def __reduce__(self) -> tuple[object, ...]:
        found = (self.url, self.reason, self.offset, self.length, self.status, self.attempts)
        return type(self), (*found, self.errno), self.__dict__

    def __str__(self) -> str:
        what = f"bytes [{self.offset}, {self.offset + self.length})" if self.length else "its state"
        tries = f" {self.attempts} times" if self.attempts > 1 else ""
        return f"{self.url}: asked for {what}{tries}: {self.reason}; try again, or check the store"


class UnsupportedError(MappedFileError, OSError):
    """The operating system, the file system or the kind of file does not support the operation.

    Attributes:
        operation: the operation, in words.
        reason: what was found, and often what to do.
        errno: the operating system's error number; EOPNOTSUPP if it gave none.
    """

    def __init__(self, operation: str, reason: str, number: int = errno.EOPNOTSUPP) -> None:
        super().__init__(number, reason)
        self.operation = operation
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.operation, self.reason, self.errno), self.__dict__

    def __str__(self) -> str:
        return f"cannot {self.operation}: {self.reason}"


def not_copied(thing: object, remedy: str) -> TypeError:
    """Make the error for copying or pickling an object that only works beside its maker."""
    return TypeError(f"{thing!r} cannot be copied or pickled: {remedy}")
