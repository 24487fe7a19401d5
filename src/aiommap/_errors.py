"""The exception tree of aiommap: each error names who is at fault and carries its numbers.

Messages are built from the arguments in ``__str__``, so that an exception pickles and that a
handler reads numbers from attributes instead of parsing text.
"""

from __future__ import annotations

import errno


class MappedFileError(Exception):
    """Root of all errors that aiommap itself raises; never raised directly.

    A missing file, a refused permission and a full disk stay the plain ``OSError`` subclasses
    they are everywhere in Python; use of a closed file raises ``anyio.ClosedResourceError``.
    """

    # Not __new__: OSError fills errno from there instead of from __init__ once it is overridden.
    def __init__(self, *args: object) -> None:
        if type(self) is MappedFileError:
            raise TypeError("MappedFileError is abstract: raise one of its subclasses")
        super().__init__(*args)

    def __repr__(self) -> str:
        # What tracebacks of groups, logs of %r and asserts show: the text, not the bare numbers.
        return f"{type(self).__name__}({str(self)!r})"


def name_file(error: BaseException, path: str) -> None:
    """Have an error of the system name the path that was asked for; ours say it themselves."""
    if isinstance(error, OSError) and not isinstance(error, MappedFileError):
        error.filename = path


class OutOfBoundsError(MappedFileError, ValueError):
    """A range leaves the mapped file; nothing was touched.

    Attributes:
        offset: first byte asked for, from the start of the file (or of the view).
        length: number of bytes asked for.
        limit: number of bytes that were there to address.
        reason: what was wrong, where it is not that the range leaves what can be addressed.
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
    """An offset is not a multiple of what the operation needs.

    Attributes:
        required: the alignment in bytes.
        offset: the offset that was asked for.
        reason: what is at fault, where it is not the offset that was asked for.
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
        operation: what was asked for.
        mode: the mode the file was opened with.
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
        names: what the caller called the two, or None where they have no names.
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
    """Bytes of the mapping are not there any more: the file was truncated, or the device failed.

    If a verb met them, that verb failed and the file can be used on. If a load or store through a
    view's memory met them, by NumPy or ``struct`` for instance, it read zeros, or stored what never
    gets into the file; so the mapping is *poisoned*: every later verb, ``flush`` and ``aclose``
    raises this error.

    Attributes:
        offset: first byte that could not be reached, from the start of the file.
        copied: how many bytes of the operation were done before it.
        size: the size of the file at the time, in bytes; None when it could not be read.
        path: the file.
        errno: the operating system's error number; EFAULT where it gave none.
        poisoned: whether a load or store through a view met them, and the mapping is poisoned.
        discards: whether reopening needs ``discard=True``, as stores may be lost with the mapping.
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
    """The file of a snapshot is not as it was: changed in place, or replaced before reopening.

    Attributes:
        offset: the first byte that is not known to be as it was: 0, as any may have changed.
        copied: 0.
        size: the size of the file, in bytes.
        path: the file.
        opened_size: the size it had when it was opened.
        reason: what is different, where it is an object of a store, whose bytes do not change.
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

    The failure latches: after it the kernel may report later flushes as successful although pages
    were dropped, so every later write, flush and ``aclose`` of the file raises this error. Reads
    go on working. To recover, close the file, reopen it and compare what is really there.

    Where only a step beside the data failed, such as syncing the directory of a new file, nothing
    is lost and nothing latches: ``latched`` is False, and the next flush tries again.

    Attributes:
        path: the file.
        reason: what happened.
        ranges: the ``(offset, end)`` byte ranges written since the last durable point.
        errno: the operating system's error number; EIO where our own check found the loss.
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
    """The file or its hub is another process's; a forked child has to open both again.

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
    """A log cannot be read or written on as it is."""


class CorruptRecordError(LogError):
    """A record of a log is damaged; its bytes were not handed out.

    It is known to have been durable, or published: no power cut leaves it so. Records behind it can
    be read with ``start=sequence + 1``.

    Attributes:
        path: the file of the segment.
        sequence: the record.
        offset: where it begins in the file.
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
    """Records that were to be read next are not in the log any more: they were discarded.

    Attributes:
        path: the folder of the log.
        sequence: the record that was to be read next.
        first: the first record that is still there.
    """

    def __init__(self, path: str, sequence: int, first: int) -> None:
        super().__init__(path, sequence, first)
        self.path = path
        self.sequence = sequence
        self.first = first

    @property
    def lost(self) -> int:
        """How many records are not there any more."""
        return self.first - self.sequence

    def __str__(self) -> str:
        return (
            f"{self.path}: records {self.sequence} to {self.first - 1} were discarded before they "
            f"were read: read on with start={self.first}"
        )


class RemoteError(MappedFileError, OSError):
    """A store could not be asked, or did not give the bytes it was asked for.

    Attributes:
        url: the object, without user, password and query.
        offset: first byte that was asked for.
        length: number of bytes; 0 where the object itself was asked about.
        reason: what happened.
        status: the HTTP status, where there was one.
        attempts: how often it was asked, the engine's own retries aside.
        errno: the operating system's error number; EIO where there is none.
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
    """The operating system, the file system or the kind of file lacks what was asked for.

    Attributes:
        operation: what was asked for.
        reason: what was found.
        errno: the operating system's error number; EOPNOTSUPP where it gave none.
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
    """Make the error of what has no meaning beside the object that it was made by."""
    return TypeError(f"{thing!r} cannot be copied or pickled: {remedy}")
