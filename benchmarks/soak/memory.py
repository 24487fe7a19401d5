"""Loads and stores as a C library makes them: in a thread, and without the GIL.

Python's own loads and stores hold the GIL while a page comes from the disk, and so stall the loop.
That is documented, and would hide every other stall from the soak.
"""

from __future__ import annotations

import ctypes
from typing import Any

import anyio.to_thread


async def load(memory: memoryview, offset: int, length: int) -> bytes:
    """Copy bytes out of the memory of a view."""
    target = ctypes.create_string_buffer(length)
    await anyio.to_thread.run_sync(_copy, target, _address(memory, offset), length)
    return target.raw


async def store(memory: memoryview, offset: int, data: bytes) -> None:
    """Copy bytes into the memory of a view."""
    await anyio.to_thread.run_sync(_copy, _address(memory, offset), data, len(data))


def _address(memory: memoryview, offset: int) -> ctypes.c_char:
    return ctypes.c_char.from_buffer(memory, offset)


def _copy(target: object, source: object, length: int) -> None:
    ctypes.memmove(_pointer(target), _pointer(source), length)


def _pointer(thing: object) -> Any:
    return ctypes.byref(thing) if isinstance(thing, ctypes.c_char) else thing
