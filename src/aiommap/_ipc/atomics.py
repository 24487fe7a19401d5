"""Words of a mapped file that processes change and load without locks.

Native code does the operations. This module has the public types, and the policy that native code
asks about an operation that it may not allow by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NoReturn, Self, SupportsIndex

import anyio

from .._arguments import at_least, check_range, integer, time_limit
from .._core.faults import FULL
from .._core.file_core import FileCore
from .._errors import AccessModeError, AlignmentError, MappingFaultError
from .._native import Word, WordArray
from .futex import wait_for_change

U32_BYTES = 4
U64_BYTES = 8


class WordPolicy:
    """Decides about operations on the words of one file; in any thread that uses them."""

    __slots__ = ("_is_storing", "_stored", "core")

    def __init__(
        self,
        core: FileCore,
        is_storing: Callable[[int, int], bool],
        stored: Callable[[], None],
    ) -> None:
        self.core: FileCore = core
        #: Whether a write to a part of [offset, end) is still under way.
        self._is_storing = is_storing
        #: Lets the flush policy decide whether a flush is due.
        self._stored = stored

    def check(self, offset: int, length: int, store: bool) -> None:
        """Raise if an operation on a word is forbidden."""
        core = self.core
        core.check_usable()
        check_range(offset, length, core.mapping.size)
        if not store:
            return
        core.check_writable("change a word of")
        if self._is_storing(offset, offset + length):  # I9
            raise anyio.BusyResourceError(
                f"changing a word that a write to [{offset}, {offset + length}) has not reached yet"
            )

    def fault(self, offset: int, size: int, number: int) -> NoReturn:
        """Raise the error for a word that cannot be reached; a size of -1 is unknown."""
        if number in FULL:
            raise self.core.faults.no_room(number, offset, 1)
        raise MappingFaultError(offset, 0, None if size < 0 else size, self.core.path)

    def stored(self) -> None:
        """Let the flush policy check whether a flush is due; in the thread that stored."""
        self._stored()


def _locate(offset: SupportsIndex, length: int, width: int, core: FileCore) -> int:
    """Check the place of words, and return it as a plain integer."""
    core.check_usable()
    start, _ = check_range(offset, length, core.mapping.size)
    if start % width:
        raise AlignmentError(width, start)
    return start


class _SizedWord(Word):
    """A word of the width of its class."""

    __slots__ = ()
    _width: ClassVar[int]

    def __new__(cls, policy: WordPolicy, offset: SupportsIndex) -> Self:
        start = _locate(offset, cls._width, cls._width, policy.core)
        return super().__new__(cls, policy.core.mapping, policy, start, cls._width)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.offset} of {self._policy.core.path}>"


class _SizedArray(WordArray):
    """Words side by side, of the width of their class."""

    __slots__ = ()
    _width: ClassVar[int]

    def __new__(cls, policy: WordPolicy, offset: SupportsIndex, count: SupportsIndex) -> Self:
        number = integer(count, "count")
        start = _locate(offset, number * cls._width, cls._width, policy.core)
        return super().__new__(cls, policy.core.mapping, policy, start, cls._width, number)

    def _locate_one(self, index: SupportsIndex) -> int:
        number = integer(index, "index")
        if not 0 <= number < len(self):
            raise IndexError(f"word {number} of an array of {len(self)}: they count from 0")
        return self.offset + number * self._width

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name} of {len(self)} at {self.offset} of {self._policy.core.path}>"


class AtomicU64(_SizedWord):
    """An unsigned 64-bit word of a file, changed by single machine instructions.

    Made by ``MappedFile.atomic_u64``. Its operations are atomic against those of every thread and
    process that maps the file, even at another address. They count modulo 2**64, in the byte order
    of the machine. ``order`` is the memory order of C11: "seq_cst", "acq_rel", "acquire", "release"
    or "relaxed". It says which loads and stores of other words must not pass the operation. A
    ``load`` cannot release, and a ``store`` cannot acquire.

    The operations are plain calls that take a fraction of a microsecond if the page is in memory.
    If it is not, the call waits for it, and with it the loop: ``prewarm`` the page first, with
    ``write=True``, or keep it ``locked``. In mode "c" no other object sees the word.

    Attributes:
        offset: first byte, from the start of the file.

    Raises, from each operation:
        OutOfBoundsError: if the file was resized to end before the word does.
        AccessModeError: in mode "r", for all but ``load``.
        FlushError: if a flush failed earlier, for all but ``load``.
        MappingFaultError: if the file was truncated below the word.
        OSError: ENOSPC if the disk is full behind a sparse file; nothing was changed.
        anyio.BusyResourceError: if a ``write`` to the same bytes is still under way.
        anyio.ClosedResourceError, ForkedError: as for the file.
        OverflowError: if a value does not fit into the word.
        ValueError: if the order is not valid for the operation.
    Durability: visible; a change counts as a write of the bytes of the word for ``flush`` and for
        the flush policy. But it never waits for a flush, not even under ``FlushPolicy.always()``
        and ``max_dirty``: the next flush makes it durable.
    Concurrency: any thread; end such use before the file is closed.
    """

    __slots__ = ("__weakref__",)
    _width = U64_BYTES


class AtomicU32(_SizedWord):
    """An unsigned 32-bit word of a file, for which tasks of several processes can wait.

    Made by ``MappedFile.atomic_u32``. It has the operations, errors and promises of ``AtomicU64``,
    modulo 2**32.

    Attributes:
        offset: first byte, from the start of the file.
    """

    __slots__ = ("__weakref__",)
    _width = U32_BYTES

    async def wait(self, expected: SupportsIndex, timeout: float | None = None) -> int:
        """Wait until the word differs from the expected value, and return its value then.

        It returns at once if the word differs already. A task that changes the word has to
        ``notify``: the change alone wakes nobody. If the word changes and changes back, a waiter
        may miss that.

        Args:
            expected: the value that the word has; the wait ends when it has another one.
            timeout: how long to wait, in seconds; None means no limit, and 0 only checks.
        Raises:
            TimeoutError: if the word still has the expected value when the timeout ends.
            AccessModeError: in mode "c", whose words nobody else changes.
            UnsupportedError: before Linux 5.16.
            anyio.ClosedResourceError: if the file is closed, or ``reopen`` moved it to another one,
                before or while this waits.
            OutOfBoundsError, MappingFaultError, ForkedError: as for ``load``.
        Cancellation: at any time; a notification that has just come goes to another waiter.
        Concurrency: any number of tasks. Up to 127 waits of a process share a thread, which takes
            no worker away from reads and writes.
        Source: futex_waitv(2).
        """
        core = self._shared("wait for")
        number = integer(expected, "expected")
        if not 0 <= number < 1 << 32:
            raise OverflowError(f"{number} is no unsigned integer of 32 bits: the word never is it")
        return await wait_for_change(core, self, number, time_limit(timeout))

    def notify(self, n: SupportsIndex = 1) -> int:
        """Wake tasks that wait for the word, in any process; call it after a change of the word.

        Args:
            n: how many tasks to wake at least, if that many wait.
        Returns:
            How many waiters were woken; several tasks of a process may count as one.
        Raises:
            AccessModeError: in mode "c".
            ValueError: if n is negative.
        Source: futex(2) with FUTEX_WAKE.
        """
        self._shared("notify the waiters of")
        count = at_least(0, n, "n", "it is how many waiters to wake")
        return self._notify(min(count, (1 << 31) - 1))

    def _shared(self, operation: str) -> FileCore:
        core: FileCore = self._policy.core
        core.check_usable()
        if core.mode == "c":
            remedy = 'no other process sees its words: use "r+"'
            raise AccessModeError(f"{operation} a word of", "c", remedy)
        return core


class AtomicU64Array(_SizedArray):
    """Unsigned 64-bit words of a file, side by side, with the operations of ``AtomicU64``.

    Made by ``MappedFile.atomic_u64_array``. The first argument of each operation is the number of
    the word: ``array.fetch_add(3, 1)`` adds 1 to word 3. ``array[3]`` makes an object for that word
    alone. A number outside the array raises IndexError.

    Attributes:
        offset: first byte of word 0, from the start of the file.
    """

    __slots__ = ("__weakref__",)
    _width = U64_BYTES

    def __getitem__(self, index: SupportsIndex) -> AtomicU64:
        return AtomicU64(self._policy, self._locate_one(index))


class AtomicU32Array(_SizedArray):
    """Unsigned 32-bit words of a file, side by side, with the operations of ``AtomicU32``.

    Made by ``MappedFile.atomic_u32_array``; otherwise as ``AtomicU64Array``. To wait for a word,
    call ``array[3].wait(0)``.

    Attributes:
        offset: first byte of word 0, from the start of the file.
    """

    __slots__ = ("__weakref__",)
    _width = U32_BYTES

    def __getitem__(self, index: SupportsIndex) -> AtomicU32:
        return AtomicU32(self._policy, self._locate_one(index))
