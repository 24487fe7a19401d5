"""What callers pass, as the verbs take it: buffers as bytes, integers, numbers of bytes; pure."""

from __future__ import annotations

import reprlib

from ._ranges import integer

#: No process can map more: half of what 48 bits address.
MOST_BYTES = 1 << 47


def plain_integers(*numbers: object) -> bool:
    """Tell whether the native verbs take these as they are; NumPy's integers they do not."""
    return all(isinstance(number, int) for number in numbers)


def byte_count(size: object, name: str) -> int:
    """Check a size given by the caller."""
    count = integer(size, name)
    if count < 0:
        raise ValueError(f"{name} is {count}: it is a number of bytes and cannot be negative")
    if count > MOST_BYTES:
        raise ValueError(f"{name} is {count}: no process can map more than {MOST_BYTES} bytes")
    return count


def contiguous(data: object) -> memoryview:
    """View a C-contiguous buffer as bytes, without a copy."""
    try:
        view = memoryview(data)  # type: ignore[arg-type]  # this finds out
    except TypeError:
        hint = ": encode it first" if isinstance(data, str) else ""
        raise TypeError(
            f"data is {reprlib.repr(data)}, not bytes or another buffer of them{hint}"
        ) from None
    if not view.c_contiguous:
        raise BufferError("asked to use a buffer that is not C-contiguous: make a copy of it first")
    if view.ndim == 1 and view.format == "B":
        return view
    return view.cast("B") if view.nbytes else memoryview(b"")


def writable(buffer: object) -> memoryview:
    """View a writable C-contiguous buffer as bytes."""
    view = memoryview(buffer)  # type: ignore[arg-type]  # its TypeError is the one to raise
    if view.readonly:
        raise TypeError("asked to read into a read-only buffer: pass a bytearray or the like")
    if not view.c_contiguous:
        raise BufferError("asked to read into a buffer that is not C-contiguous: use another one")
    return view.cast("B") if view.nbytes else memoryview(bytearray())
