"""Pointers: small objects that name the object to serve.

Whoever may write a pointer chooses what is read. So a pointer never leads out of its store: not to
files of this machine, and not to other hosts or buckets that this machine can reach.
"""

from __future__ import annotations

from urllib.parse import unquote

from .obstore import ObstoreSource
from .source import PointingSource, RemoteSource, RemoteState, without_secrets

#: A pointer that is longer is refused: it has only to name one object.
MAX_POINTER_BYTES = 64 << 10


def pointed_to(pointer: RemoteSource, state: RemoteState) -> RemoteSource:
    """Read a pointer, and return the source that it names. Worker threads only.

    Raises:
        ValueError: if it names nothing, or nothing of its own store.
        BlockingIOError: if it was changed meanwhile.
    """
    if not 0 < state.size <= MAX_POINTER_BYTES:
        raise ValueError(
            f"{pointer.url} has {state.size} bytes: a pointer is the URL or key of one object"
        )
    data, found = pointer.fetch(0, state.size, state)
    whole = memoryview(data).nbytes == state.size
    if not whole or (found.size, found.etag) != (state.size, state.etag):
        raise BlockingIOError(11, "the pointer was changed while it was read", pointer.url)
    text = bytes(data).decode("utf-8", "replace").strip()
    try:
        return _named_by(pointer, text)
    except ValueError as error:
        raise ValueError(
            f"{pointer.url} holds {without_secrets(text)[:200]!r} ({error}): a pointer names an "
            "object of its own store, by a key beside it or by its URL"
        ) from error


def _named_by(pointer: RemoteSource, text: str) -> RemoteSource:
    if not isinstance(pointer, PointingSource):
        raise TypeError(f"{pointer.url} holds {text!r}, and its source finds no keys beside it")
    if "://" not in text or isinstance(pointer, ObstoreSource):
        return pointer.beside(text)
    folder = pointer.url.rpartition("/")[0] + "/"
    if not text.startswith(folder):
        raise ValueError(f"it is not below {folder}")
    return pointer.beside(unquote(text[len(folder) :]))
