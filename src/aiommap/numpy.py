"""NumPy's ``.npy`` files, mapped; needs NumPy (the extra ``numpy``).

``load_npy`` makes an array over an open file, view or snapshot; it fits as ``load`` of
``aiommap.follow``. ``open_npy`` opens a file. Both read the header, check it against the size of
the file, and lay the array over the mapped bytes behind it. They copy nothing, and run nothing that
is in the file: Python objects are refused.

After ``import aiommap.numpy`` the verb ``array`` of files, views and snapshots works, too.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from anyio.abc import AsyncResource

from . import FlushPolicy, Hub, MappedFile, Opening, Snapshot, View
from . import open as open_mapped

try:
    import numpy as np
    from numpy.lib import format as npy
except ImportError as _missing:
    raise ImportError('aiommap.numpy needs NumPy: pip install "aiommap[numpy]"') from _missing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("NpyFile", "load_npy", "open_npy")

#: NumPy refuses longer headers, because a malicious one could exhaust the stack.
_MAX_HEADER_BYTES = 10_000
#: Bytes of magic and version; and bytes of the length behind them, by the major version.
_MAGIC_BYTES = npy.MAGIC_LEN
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
_MODES = ("r", "r+", "c")


@dataclass(frozen=True, slots=True)
class _Header:
    """The content of a header, and the offset at which the array begins."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int

    @classmethod
    def parse(cls, head: bytes) -> _Header:
        """Parse the first bytes of a file; raise what NumPy raises, or ValueError."""
        file = io.BytesIO(head)
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"it is of version {version}; 1.0, 2.0 and 3.0 are known")
        begin = _MAGIC_BYTES + _LENGTH_BYTES[version[0]]
        length = int.from_bytes(head[_MAGIC_BYTES:begin], "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"it has {length} bytes; more than {_MAX_HEADER_BYTES} are refused")
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(file)
        else:
            text = head[begin : begin + length]
            if version == (3, 0):
                text = _as_2_0(text)
            file = io.BytesIO(len(text).to_bytes(4, "little") + text)
            shape, fortran, dtype = npy.read_array_header_2_0(file)
        if any(count < 0 or isinstance(count, bool) for count in shape):
            raise ValueError(f"the shape {shape} has negative numbers, or what is no number")
        return cls(dtype, shape, "F" if fortran else "C", begin + length)

    def check(self, size: int, path: str) -> None:
        """Raise unless a file of ``size`` bytes holds this header and its array, and no more."""
        if self.dtype.hasobject:
            raise ValueError(
                f"{path} holds Python objects, which only unpickling makes, and a pickle can run "
                "anything: if you trust it, numpy.load(path, allow_pickle=True)"
            )
        wanted = self.offset + math.prod(self.shape) * self.dtype.itemsize
        if size != wanted:
            guess = (
                "was it written to its end?"
                if size < wanted
                else "does something follow the array? Of several in one file, each is to be laid "
                "over the bytes by array(dtype, shape, offset)"
            )
            raise ValueError(
                f"{path} has {size} bytes, and its header tells of {wanted}: {self.dtype} in the "
                f"shape {self.shape} behind {self.offset} bytes; {guess}"
            )


def _as_2_0(text: bytes) -> bytes:
    """Convert the text of a header of version 3.0 to 2.0, for which NumPy has a public parser.

    The two versions differ only in the encoding of names. The text is a Python literal, in which a
    character beyond ASCII means the same as its escape.
    """
    return text.decode("utf-8").encode("ascii", "backslashreplace")


async def _read_header(source: Snapshot | MappedFile | View, path: str) -> _Header:
    size = len(source)
    head = await source.read(0, min(size, _MAGIC_BYTES + 4 + _MAX_HEADER_BYTES))
    try:
        header = _Header.parse(head)
    except Exception as error:  # of tokenizers and parsers, too: the text may be anything
        raise ValueError(f"{path} has no header of a .npy file: {error}") from error
    header.check(size, path)
    return header


async def load_npy(source: Snapshot | MappedFile | View) -> NDArray[Any]:
    """Make the array of a ``.npy`` file over its mapped bytes, without a copy.

    With ``aiommap.follow(path, load=aiommap.numpy.load_npy)``, ``live.value`` is the array of the
    newest good file. The array keeps its pages mapped for as long as it lives, but does not keep
    the file open.

    Args:
        source: a whole file in a format of ``numpy.save``: version 1.0, 2.0 or 3.0, in C or Fortran
            order.
    Returns:
        An array as ``source.array`` makes it: read-only in mode "r" and for snapshots.
    Raises:
        ValueError: if there is no good header, if it does not fit the size of the file, or if the
            array holds Python objects.
        As ``MappedFile.read`` and ``MappedFile.array``.
    Cancellation: as ``MappedFile.read``.
    """
    path = "the view" if isinstance(source, View) else source.path or "the file"
    header = await _read_header(source, path)
    try:
        return source.array(header.dtype, header.shape, header.offset, order=header.order)
    except ValueError as error:
        raise ValueError(f"{path} cannot be laid out: {error}") from error


class NpyFile(AsyncResource):
    """An open ``.npy`` file; ``open_npy`` makes it.

    Attributes:
        array: its array, over the mapped bytes. It stays valid after the file was closed.
        file: the file. ``await npy.file.prewarm()`` before you use the array, so that the loop does
            not wait for the disk. ``await npy.file.flush()`` makes stores into the array durable.

    Concurrency: as for the file.
    """

    __slots__ = ("array", "file")

    def __init__(self, file: MappedFile, array: NDArray[Any]) -> None:
        self.file: MappedFile = file
        self.array: NDArray[Any] = array

    async def aclose(self) -> None:
        """Close the file, as ``MappedFile.aclose`` does; the array keeps its pages."""
        await self.file.aclose()

    def __repr__(self) -> str:
        return f"<NpyFile of {self.array.dtype} in the shape {self.array.shape}, {self.file!r}>"


def open_npy(
    path: str | os.PathLike[str],
    mode: str = "r",
    *,
    flush: FlushPolicy | None = None,
    prewarm: bool = False,
    hub: Hub | None = None,
) -> Opening[NpyFile]:
    """Open a ``.npy`` file and map its array: ``async with aiommap.numpy.open_npy(path) as npy``.

    ``npy.array`` has the values, dtype and shape of ``numpy.load(path, mmap_mode=mode)``.

    Args:
        path: a file in a format of ``numpy.save``.
        mode: "r" for a read-only array; "r+" for an array whose stores reach the file; "c" for one
            whose stores stay private. To make a file use ``numpy.save``.
        flush: when background flushes are due, as for ``aiommap.open``.
        prewarm: whether to make the whole file resident before returning.
        hub: the hub that opens the file; None makes one.
    Returns:
        An object to use with ``async with``, or to ``await`` for an NpyFile to ``aclose``.
    Raises:
        ValueError: as ``load_npy``; also if the mode is another one.
        As ``aiommap.open``.
    Cancellation: as ``aiommap.open``.
    """
    if mode not in _MODES:
        raise ValueError(f"mode is {mode!r}: use one of {_MODES}; numpy.save makes new files")
    opener = open_mapped if hub is None else hub.open
    policy = FlushPolicy.manual() if flush is None else flush
    opening = opener(path, mode, flush=policy, prewarm=prewarm)

    async def begin() -> NpyFile:
        file = await opening
        try:
            return NpyFile(file, await load_npy(file))
        except BaseException:
            await file.aclose()
            raise

    return Opening(begin)
