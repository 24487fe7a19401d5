"""Opening: make a mapping of a path and options, in a worker thread, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from .._errors import AccessModeError, name_file
from .._native import (
    HUGE,
    IN_MEMORY,
    LOCAL,
    NOWAIT,
    PRIVATE_COPY,
    RESIDENCY_VISIBLE,
    SPARSE,
    STABLE_PAGES,
    WRITABLE,
    Mapping,
    append_zeros_to,
    sigbus_blocked,
)
from .file_kinds import (
    cannot_map,
    check_mappable,
    check_regular,
    has_stable_pages,
    is_in_memory,
    is_on_server,
)
from .file_state import FileState, Identity
from .kernel import kernel_version
from .leases import LeasedError
from .lengths import set_length, size_limit, too_long
from .mapping_limit import mapping_limit, no_address_space
from .nameless import FIXED_SIZE, READ_ONLY, AnonymousMemory, GivenDescriptor, seals_of
from .options import Mode, OpenOptions, check_volatile_policy
from .paths import FilePath, NewName, open_new, open_or_new, open_or_share

#: Linux 5.9 and 5.10 return short NOWAIT reads of cached data (tokio-rs/tokio#3803).
_BROKEN_NOWAIT = ((5, 9), (5, 10))

_warned = False


def warn_if_unguarded() -> None:
    """Warn, once per process, if a foreign fault in this thread would kill the process."""
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


@dataclass(frozen=True, slots=True)
class Opened:
    """The result of opening."""

    mapping: Mapping
    identity: Identity
    state: FileState
    #: Whether the file had a name.
    named: bool
    #: The name of the file if it may not be durable: this opening created it, or another process
    #: may just have done so.
    made: NewName | None
    #: Whether this opening changed the size.
    resized: bool
    #: How the file can be found: a path if one leads there.
    where: FilePath | GivenDescriptor | AnonymousMemory
    #: Whether it is memory that is gone with its last descriptor, so that no byte is ever durable.
    volatile: bool
    #: Whether its size cannot be changed.
    sealed: bool


def open_mapping(options: OpenOptions) -> Opened:
    """Open, create or overwrite the file and map it. Worker threads only.

    Raises:
        LeasedError: before anything is touched; the caller tries again.
    """
    fd, made, shared = _open_descriptor(options)
    close: Callable[[], object] = partial(os.close, fd)
    try:
        found = before = os.fstat(fd)
        check_mappable(options.path, fd, found)
        if options.mode.appends and (options.size or 0) > found.st_size:
            found = _extend(fd, options)
        # Map before overwriting: if mapping fails, the old bytes are still there.
        mapping = _map(fd, found, options)
        close = mapping.close
        if options.mode.makes:
            _make_content(mapping, found, options)
            found = os.fstat(fd)
        if options.mode.appends:
            mapping.append_through(_open_to_append(fd, options))
        if isinstance(options.where, AnonymousMemory):
            options.where.seal_size(fd)
        if not shared:
            _stop_noting_reads(fd)
        volatile = _is_volatile(fd, found, options)
    except BaseException as error:
        if made is not None:
            _undo(made, fd, error)
        close()
        name_file(error, options.path)
        raise
    return Opened(
        mapping,
        Identity.of(found),
        FileState.of(found),
        named=found.st_nlink > 0,
        made=made,
        resized=options.mode.makes or found.st_size != before.st_size,
        where=_found_at(options),
        volatile=volatile,
        sealed=bool(not options.has_path and seals_of(fd) & FIXED_SIZE),
    )


def map_again(fd: int, options: OpenOptions, flags: int) -> Opened:
    """Map a regular file that is open already, in mode "r". Worker threads only.

    For a file that its caller has made or checked. The mapping gets a duplicate of the descriptor,
    so nothing has to be found, opened or asked for again. ``flags`` are what ``mapping_flags``
    returned for a file of the same file system.
    """
    fd = os.dup(fd)
    try:
        found = os.fstat(fd)
        mapping = Mapping(fd, found.st_size, found.st_size, flags)
    except BaseException:
        os.close(fd)
        raise
    _stop_noting_reads(fd)
    return Opened(
        mapping,
        Identity.of(found),
        FileState.of(found),
        named=found.st_nlink > 0,
        made=None,
        resized=False,
        where=options.where,
        volatile=False,
        sealed=False,
    )


def _found_at(options: OpenOptions) -> FilePath | GivenDescriptor | AnonymousMemory:
    """Find a path to the file if it was opened by a descriptor, and close the duplicate."""
    where = options.where
    if not isinstance(where, GivenDescriptor):
        return where
    path = where.find_path()
    where.close()
    return where if path is None else FilePath.check(path)


def _is_volatile(fd: int, found: os.stat_result, options: OpenOptions) -> bool:
    """Tell whether a file is memory without a name; raise if a policy would flush it."""
    volatile = not options.has_path and not found.st_nlink and is_in_memory(fd)
    if volatile:
        check_volatile_policy(options.flush, options.path)
    return volatile


def _undo(made: NewName, fd: int, error: BaseException) -> None:
    """Remove the new file, before its descriptor is closed: no other file can have its inode."""
    try:
        made.remove(Identity.of(os.fstat(fd)))
    except OSError as failure:
        error.add_note(f"the file that was created could not be removed again: {failure}")
    made.close()


def _open_descriptor(options: OpenOptions) -> tuple[int, NewName | None, bool]:
    """Open a file without ever truncating it.

    Returns:
        A descriptor; the name, if it may not be durable; and whether the descriptor shares
        position and flags with one of the caller's.
    """
    where = options.where
    # O_NONBLOCK: if the path has become a pipe meanwhile, do not wait for its other end.
    flags = options.mode.flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        if isinstance(where, AnonymousMemory):
            return where.open(), None, False
        if isinstance(where, FilePath):
            return *_open_path(where, options.mode, flags), False
        return _open_given(where, flags)
    except BlockingIOError:
        raise LeasedError(options.path) from None
    except OSError as error:
        name_file(error, options.path)
        raise


def _open_given(where: GivenDescriptor, flags: int) -> tuple[int, None, bool]:
    check_regular(where.whole, where.stat())
    fd, shared = where.open(flags)
    return fd, None, shared


def _open_path(where: FilePath, mode: Mode, flags: int) -> tuple[int, NewName | None]:
    with where.beginning() as (path, start):
        try:
            # Look first: merely to open a pipe or a device can have effects.
            check_regular(where.whole, os.stat(path, dir_fd=start))
        except FileNotFoundError:
            if not (mode.makes or mode.appends):
                raise
        if mode.appends:
            return open_or_share(path, start, flags)
        if mode.name == "w+":
            return open_or_new(path, start, flags)
        if mode.makes:
            return open_new(path, start, flags)
        return os.open(path, flags, dir_fd=start), None


def _open_to_append(fd: int, options: OpenOptions) -> int:
    """Open the same file once more, with O_APPEND and a position of its own.

    The first descriptor must not have O_APPEND: pwrite(2) would append as well, whatever its
    offset.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except (FileNotFoundError, NotADirectoryError):  # there is no /proc
        if not isinstance(options.where, FilePath):
            raise
    with options.where.beginning() as (path, start):
        again = os.open(path, flags, dir_fd=start)
    if Identity.of(os.fstat(again)) != Identity.of(os.fstat(fd)):
        os.close(again)
        reason = "it was replaced while it was opened: open it again"
        raise OSError(errno.ESTALE, reason, options.path)
    return again


def _extend(fd: int, options: OpenOptions) -> os.stat_result:
    """Make the file at least ``size`` bytes long, while others may append to it."""
    size = options.size or 0
    with _no_room(size, options.path):
        reserve_shared(fd, size, sparse=options.sparse)
    return os.fstat(fd)


def _no_room(size: int, path: str) -> AbstractContextManager[None]:
    """Explain ENOSPC in the block: the disk has no room for the ``size`` of a new file."""
    advice = (
        f" for the {size} bytes to reserve: ask for a smaller size, or pass sparse=True to "
        "take blocks only where something is stored"
    )
    return _explained(errno.ENOSPC, advice, path)


@contextmanager
def _explained(number: int, advice: str, path: str) -> Iterator[None]:
    """Add advice to an error with this number in the block; let other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise
        raise OSError(number, os.strerror(number) + advice, path) from error


def _make_content(mapping: Mapping, found: os.stat_result, options: OpenOptions) -> None:
    """Make the file ``size`` zero bytes long; if the system refuses, the file is as it was.

    So the steps that the system may refuse come first: blocks, then the size. The old bytes are
    overwritten last.
    """
    fd, size, old = mapping.fd, options.size or 0, found.st_size
    limit = size_limit()
    longer = size > old or not options.sparse  # a hole can be punched anywhere
    if longer and resource.RLIM_INFINITY != limit < size:
        raise too_long(options.path, size)
    if not options.sparse:
        with _no_room(size, options.path):
            reserve(fd, 0, size, old)
    set_length(fd, size, old, options.path)
    kept = min(old, size)
    if options.sparse and kept:
        try:
            mapping.punch_hole(0, kept)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
                raise
            _store_zeros(fd, kept)
    else:
        _store_zeros(fd, kept)


def _check_room(fd: int, offset: int, length: int) -> None:
    """Raise if the disk has no room for a range: fallocate(2) would first take all there is."""
    found = os.fstat(fd)
    blocks = found.st_blocks * 512
    spare = max(blocks - found.st_size, 0)  # XFS keeps blocks beyond the end of a growing file
    growth = offset + length - max(found.st_size, offset)
    wanted = max(length - blocks, growth - spare)  # a lower bound: holes may be anywhere
    try:
        disk = os.fstatvfs(fd)
    except OSError:  # a sandbox refuses the call; then reserving blocks finds out
        return
    # Some file systems count no blocks; and a full disk has none that fallocate(2) could take.
    if disk.f_blocks and disk.f_bfree and wanted > disk.f_bfree * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _store_zeros(fd: int, end: int) -> None:
    """Overwrite the data of a file up to ``end`` with zeros; holes stay holes."""
    zeros, at = bytes(1 << 20), 0
    while (found := _data(fd, at, end)) is not None:
        at, stop = found
        while at < stop:
            at += os.pwrite(fd, zeros[: min(len(zeros), stop - at)], at)


def _data(fd: int, at: int, end: int) -> tuple[int, int] | None:
    """Find the next run of data, not a hole, from ``at`` on."""
    if at >= end:
        return None
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        stop = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a hole up to the end of the file
            return None
        return at, end  # the file system cannot tell, so all of it counts as data
    return (start, min(stop, end)) if start < end else None


#: Errors of sandboxes, and of file systems that cannot allocate, if libc does not write zeros.
_NOT_ALLOCATED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})


#: Functions called with (fd, offset, length) before blocks are allocated. They may raise:
#: ``aiommap.testing`` fills disks here.
allocation_checks: list[Callable[[int, int, int], None]] = []


def check_allocation(fd: int, offset: int, length: int) -> None:
    """Raise if ``aiommap.testing`` has filled the disk."""
    for check in tuple(allocation_checks):
        check(fd, offset, length)


def _allocate(fd: int, offset: int, length: int) -> None:
    """Allocate blocks, and make the file reach as far as they do."""
    check_allocation(fd, offset, length)
    try:
        os.posix_fallocate(fd, offset, length)
    except OSError as error:
        if error.errno not in _NOT_ALLOCATED:
            raise
        _fill_holes(fd, offset, offset + length)  # this fails with the same EPERM if it is sealed


def _fill_holes(fd: int, offset: int, end: int) -> None:
    """Write zeros where a range has no blocks."""
    zeros = bytes(1 << 20)
    while offset < end:
        if offset < os.fstat(fd).st_size:
            offset = os.lseek(fd, offset, os.SEEK_HOLE)
        try:
            stop = min(os.lseek(fd, offset, os.SEEK_DATA), end)
        except OSError:  # ENXIO: a hole up to the end of the file
            stop = end
        while offset < stop:
            offset += os.pwrite(fd, zeros[: stop - offset], offset)


def reserve(fd: int, offset: int, length: int, old: int) -> None:
    """Allocate the blocks of a range that may reach beyond the end of the file.

    A posix_fallocate(3) that fails leaves the file grown and the disk full, so this cuts it back.
    """
    if not length:
        return
    _check_room(fd, offset, length)
    try:
        _allocate(fd, offset, length)
    except OSError:
        if offset + length > old:
            os.ftruncate(fd, old)
        raise


def reserve_shared(fd: int, size: int, *, sparse: bool) -> None:
    """Make a file at least ``size`` bytes long while others append to it; never cut it off."""
    check_allocation(fd, 0, size)
    append_zeros_to(fd, size, sparse)


def _map(fd: int, found: os.stat_result, options: OpenOptions) -> Mapping:
    size = (options.size or 0) if options.mode.makes else found.st_size
    capacity = size if options.capacity is None else options.capacity
    if capacity < size and (options.again or options.mode.appends):
        capacity = size  # the file has grown beyond it since the capacity was chosen
    if capacity < size:
        raise ValueError(f"capacity is {capacity}, but {options.path} has {size} bytes already")
    try:
        return Mapping(fd, size, capacity, mapping_flags(fd, found, options))
    except OSError as error:
        if error.errno == errno.EPERM and seals_of(fd) & READ_ONLY:
            remedy = 'it is sealed against writing: use mode "r" or "c"'
            raise AccessModeError("store to", options.mode.name, remedy) from error
        if error.errno == errno.ENODEV:
            raise cannot_map(options.path) from error
        if error.errno == errno.ENOMEM:
            reason = os.strerror(errno.ENOMEM) + _no_memory(capacity, options)
            raise OSError(errno.ENOMEM, reason, options.path) from error
        raise


def mapping_flags(fd: int, found: os.stat_result, options: OpenOptions) -> int:
    """Return the flags with which a file is mapped."""
    flags = {
        WRITABLE: options.mode.writable,
        PRIVATE_COPY: options.mode.private,
        HUGE: options.huge_pages,
        NOWAIT: nowait_works(os.uname()),
        IN_MEMORY: is_in_memory(fd),
        LOCAL: not is_on_server(fd),
        STABLE_PAGES: options.mode.writable and has_stable_pages(found.st_dev),
        RESIDENCY_VISIBLE: _sees_residency(fd, found, options),
        SPARSE: options.sparse,
    }
    return sum(flag for flag, is_set in flags.items() if is_set)


def _no_memory(capacity: int, options: OpenOptions) -> str:
    """Say why a file could not be mapped for want of memory, and what to do."""
    full = mapping_limit()
    if full:
        return f": {full}"
    if options.mode.private and _counts_private_pages():
        return (
            f": vm.overcommit_memory is 2, so the {capacity} bytes count as memory that a private "
            'mapping may come to need, and there is not as much left: use mode "r" or "r+", or '
            "raise vm.overcommit_ratio"
        )
    return f": {no_address_space(capacity)}"


def _counts_private_pages() -> bool:
    """Tell whether private mappings count as memory in use (strict overcommit)."""
    try:
        with open("/proc/sys/vm/overcommit_memory", encoding="utf-8") as file:
            return file.read().strip() == "2"
    except OSError:
        return False


def _stop_noting_reads(fd: int) -> None:
    """Keep reads from updating the access time, which mapping the file has just set.

    An update makes a read join the file system's journal. Even a read with RWF_NOWAIT waits for
    that, on the loop thread (docs/decisions.md). Only the owner of the file may turn updates off.
    """
    if hasattr(os, "O_NOATIME"):
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NOATIME)


def nowait_works(kernel: os.uname_result) -> bool:
    """Tell whether NOWAIT reads of this kernel can be trusted."""
    if kernel.sysname != "Linux":
        return False
    return kernel_version(kernel.release) not in _BROKEN_NOWAIT


def _sees_residency(fd: int, found: os.stat_result, options: OpenOptions) -> bool:
    """Tell whether mincore(2) answers truthfully: to owners and writers only, since Linux 5.2."""
    if options.mode.writable and not options.mode.private:
        return True
    user = os.geteuid()
    if user in (0, found.st_uid):
        return True
    # Ask by descriptor: the path may name another file by now.
    return os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)
