"""Opening: from a path and options to a mapping, in a worker thread, leaving nothing half done."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from ._advice import Advice
from ._arguments import byte_count
from ._change import FileState, Identity
from ._errors import UnsupportedError
from ._native import Mapping, filesystem_type, sigbus_blocked
from ._policy import FlushPolicy

#: statfs(2) numbers of file systems whose files are memory: tmpfs, ramfs.
_IN_MEMORY = frozenset({0x01021994, 0x858458F6})

#: Linux 5.9 and 5.10 return short NOWAIT reads of cached data (tokio-rs/tokio#3803).
_BROKEN_NOWAIT = ((5, 9), (5, 10))

_warned = False

_KINDS: tuple[tuple[Callable[[int], bool], str, int], ...] = (
    (stat.S_ISDIR, "a directory", errno.EISDIR),
    (stat.S_ISFIFO, "a pipe", errno.ESPIPE),
    (stat.S_ISSOCK, "a socket", errno.ENODEV),
    (stat.S_ISCHR, "a character device", errno.ENODEV),
    (stat.S_ISBLK, "a block device", errno.ENODEV),
)


@dataclass(frozen=True, slots=True)
class Mode:
    """What one of the five mode letters means."""

    name: str
    flags: int
    writable: bool = False
    private: bool = False
    makes: bool = False


MODES = {
    mode.name: mode
    for mode in (
        Mode("r", os.O_RDONLY),
        Mode("r+", os.O_RDWR, writable=True),
        Mode("w+", os.O_RDWR | os.O_CREAT, writable=True, makes=True),
        Mode("x+", os.O_RDWR | os.O_CREAT | os.O_EXCL, writable=True, makes=True),
        Mode("c", os.O_RDONLY, writable=True, private=True),
    )
}


def warn_if_unguarded() -> None:
    """Warn, once a process, if foreign loads and stores of this thread could not be survived."""
    global _warned
    if _warned or not sigbus_blocked():
        return
    _warned = True
    warnings.warn(
        "SIGBUS is blocked in the thread that opens the file, so a load or store through a view "
        "kills the process if the file loses the page; verbs are safe. Unblock it with "
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGBUS})",
        RuntimeWarning,
        stacklevel=4,
    )


_MANUAL = FlushPolicy.manual()


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Return where a path leads from here; an empty one would lead to the current directory."""
    text = os.fsdecode(path)
    if not text:
        raise ValueError("path is empty: name a file")
    return os.path.abspath(text)


def check_policy(policy: object, name: str = "flush") -> FlushPolicy:
    """Refuse what is no flush policy."""
    if not isinstance(policy, FlushPolicy):
        raise TypeError(f"{name} is {policy!r}: use one of the FlushPolicy class methods")
    return policy


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """Everything ``open`` was asked for, checked."""

    path: str
    mode: Mode
    size: int | None
    capacity: int | None
    sparse: bool
    flush: FlushPolicy
    advice: Advice | None
    prewarm: bool
    lock: bool
    huge_pages: bool
    #: Whether a file was open at this path before: another one there may need more capacity.
    again: bool = False

    @classmethod
    def check(
        cls,
        path: str | os.PathLike[str],
        mode: str,
        *,
        size: int | None = None,
        capacity: int | None = None,
        sparse: bool = False,
        flush: FlushPolicy = _MANUAL,
        advice: Advice | None = None,
        prewarm: bool = False,
        lock: bool = False,
        huge_pages: bool = False,
    ) -> OpenOptions:
        """Refuse what cannot be meant, before anything is touched; defaults as for ``open``."""
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}: use one of " + ", ".join(map(repr, MODES)))
        makes = MODES[mode].makes
        if makes != (size is not None):
            need = "needs" if makes else "takes no"
            raise ValueError(f'mode "{mode}" {need} size: ' + _SIZE_REMEDY[makes])
        if sparse and not MODES[mode].writable:
            raise ValueError(f'sparse=True has no meaning in mode "{mode}": nothing is reserved')
        length = None if size is None else byte_count(size, "size")
        room = None if capacity is None else byte_count(capacity, "capacity")
        if room is not None and MODES[mode].private:
            raise ValueError('mode "c" takes no capacity: a private file cannot grow')
        if length is not None and room is not None and room < length:
            raise ValueError(f"capacity is {room}, less than size {length}: make it at least that")
        if advice is not None and not isinstance(advice, Advice):
            raise TypeError(f"advice is {advice!r}: use a member of Advice")
        switches = {"sparse": sparse, "prewarm": prewarm, "lock": lock, "huge_pages": huge_pages}
        for name, switch in switches.items():
            if not isinstance(switch, bool):
                raise TypeError(f"{name} is {switch!r}: it is either True or False")
        return cls(
            path=absolute_path(path),
            mode=MODES[mode],
            size=length,
            capacity=room,
            sparse=sparse,
            flush=check_policy(flush),
            advice=advice,
            prewarm=prewarm,
            lock=lock,
            huge_pages=huge_pages,
        )


_SIZE_REMEDY = {
    True: "pass size=, the number of bytes to create",
    False: "the size is the file's own; use resize() once it is open",
}


def reopening(options: OpenOptions) -> OpenOptions:
    """Say how to open what is at the path by now, without making anything."""
    mode = MODES["r+"] if options.mode.makes else options.mode
    return replace(options, mode=mode, size=None, again=True)


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening found."""

    mapping: Mapping
    identity: Identity
    state: FileState
    created: bool
    named: bool
    path: str


def open_mapping(options: OpenOptions) -> Opened:
    """Open, create or overwrite the file and map it. Worker threads only."""
    fd, created = _open_descriptor(options)
    try:
        found = os.fstat(fd)
        check_kind(options.path, found)
        if options.size is not None:
            _make_content(fd, found.st_size, options)
            found = os.fstat(fd)
        mapping = _map(fd, found, options)
        _stop_noting_reads(fd)
    except BaseException as error:
        os.close(fd)
        if created:
            os.unlink(options.path)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = options.path
        raise
    return Opened(
        mapping,
        Identity.of(found),
        FileState.of(found),
        created,
        named=found.st_nlink > 0,
        path=options.path,
    )


def check_kind(path: str, found: os.stat_result) -> None:
    """Raise unless a path is a regular file, saying what it is instead."""
    for test, kind, number in _KINDS:
        if test(found.st_mode):
            reason = f"it is {kind}, and only regular files can be mapped"
            raise UnsupportedError(f"map {path}", reason, number)


def _open_descriptor(options: OpenOptions) -> tuple[int, bool]:
    """Open the path without ever truncating it; tell whether this call created it."""
    path, flags = options.path, options.mode.flags | os.O_CLOEXEC | os.O_NOCTTY
    try:
        # Looked at first, because merely opening a pipe or a device can have effects.
        check_kind(path, os.stat(path))
    except FileNotFoundError:
        if not options.mode.makes:
            raise
    # O_NONBLOCK: should the path have become a pipe meanwhile, do not wait for its other end.
    flags |= os.O_NONBLOCK
    if options.mode.name != "w+":
        return os.open(path, flags, 0o666), options.mode.makes
    while True:
        try:
            return os.open(path, flags | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                return os.open(path, flags & ~os.O_CREAT), False
            except FileNotFoundError:
                if os.path.islink(path):  # dangling, and O_EXCL never follows a link
                    path = os.path.realpath(path)


@contextmanager
def _explained(number: int, advice: str, path: str) -> Iterator[None]:
    """Say of an error with this number what was asked, and what to do; let others pass."""
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise
        raise OSError(number, os.strerror(number) + advice, path) from error


def _make_content(fd: int, old: int, options: OpenOptions) -> None:
    """Make the file ``size`` zero bytes long; on failure it has its old size and bytes."""
    size = options.size or 0
    if not options.sparse:
        advice = (
            f" for the {size} bytes to reserve: ask for a smaller size, or pass sparse=True to "
            "take blocks only where something is stored"
        )
        with _explained(errno.ENOSPC, advice, options.path):
            reserve(fd, 0, size, old)
    os.ftruncate(fd, size)
    zeros = bytes(1 << 20)
    for at in range(0, min(old, size), len(zeros)):
        os.pwrite(fd, zeros[: min(len(zeros), min(old, size) - at)], at)


def _allocate(fd: int, offset: int, length: int) -> None:
    """Allocate blocks, and make the file reach as far as they do."""
    os.posix_fallocate(fd, offset, length)


#: Looked up at each call, because ``aiommap.testing`` fills the disk here.
allocate: Callable[[int, int, int], None] = _allocate


def reserve(fd: int, offset: int, length: int, old: int) -> None:
    """Allocate the blocks of a range that may reach beyond the end of the file.

    posix_fallocate(3) that fails leaves the file grown and the disk full, so it is cut back.
    """
    if not length:
        return
    try:
        allocate(fd, offset, length)
    except OSError:
        if offset + length > old:
            os.ftruncate(fd, old)
        raise


def _map(fd: int, found: os.stat_result, options: OpenOptions) -> Mapping:
    mode, size = options.mode, found.st_size
    capacity = size if options.capacity is None else options.capacity
    if capacity < size and options.again:
        capacity = size
    if capacity < size:
        raise ValueError(f"capacity is {capacity}, but {options.path} has {size} bytes already")
    advice = (
        f": the process has no {capacity} bytes of address space left to map it in: ask for less "
        "capacity, or map fewer files at once"
    )
    with _explained(errno.ENOMEM, advice, options.path):
        return Mapping(
            fd,
            size,
            capacity,
            mode.writable,
            mode.private,
            options.huge_pages,
            nowait_works(os.uname()),
            filesystem_type(fd) in _IN_MEMORY,
            _sees_residency(found, options),
            options.sparse,
        )


def _stop_noting_reads(fd: int) -> None:
    """Leave the time of access as mapping the file has set it, as loads from memory do.

    Noting it makes a read join the file system's journal, for which RWF_NOWAIT waits too, on the
    loop thread (docs/decisions.md). Only the owner of the file may turn it off.
    """
    if hasattr(os, "O_NOATIME"):
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NOATIME)


def nowait_works(kernel: os.uname_result) -> bool:
    """Tell whether this kernel can be trusted with NOWAIT reads."""
    if kernel.sysname != "Linux":
        return False
    numbers = kernel.release.split("-")[0].split(".")[:2]
    return tuple(int(n) for n in numbers if n.isdigit()) not in _BROKEN_NOWAIT


def _sees_residency(found: os.stat_result, options: OpenOptions) -> bool:
    """Tell whether mincore(2) answers truthfully: to owners and writers only, since Linux 5.2."""
    if options.mode.writable and not options.mode.private:
        return True
    user = os.geteuid()
    return user in (0, found.st_uid) or os.access(options.path, os.W_OK, effective_ids=True)
