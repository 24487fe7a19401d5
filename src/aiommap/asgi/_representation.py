"""A representation: bytes to send, with the header fields that describe them."""

from __future__ import annotations

import mimetypes
import re
import time
from contextlib import AbstractContextManager
from email.utils import formatdate
from hashlib import sha256
from typing import Protocol, runtime_checkable

from .._core.file_state import FileState
from .._errors import StaleSnapshotError
from .._file.mapped_file import MappedFile
from .._snapshot.generation import Generation
from ._requests import Validators

Fields = list[tuple[bytes, bytes]]

#: What a name with one of these suffixes is sent as: the compressed file, not what is in it.
_ENCODED = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}


#: A strong one (RFC 9110 §8.8.3).
_ENTITY_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


class BodySource(Protocol):
    """What a body is read from: a snapshot, or any other ``StorageBackend``."""

    @property
    def size(self) -> int: ...
    async def read_exact(self, offset: int, length: int, /) -> bytes: ...


@runtime_checkable
class StoreObject(BodySource, Protocol):
    """What a ``RemoteSnapshot`` has beyond a backend; not everybody is to import that for it."""

    @property
    def url(self) -> str: ...
    @property
    def etag(self) -> str | None: ...
    def hold(self) -> AbstractContextManager[object]: ...


# The tables of the system are read while modules are, and not later on a loop.
if not mimetypes.inited:
    mimetypes.init()


def media_type_of(path: str) -> str:
    """Guess the media type of an absolute path by its name."""
    found, encoding = mimetypes.guess_type(path)
    if encoding is not None:
        found = _ENCODED.get(encoding)
    found = found or "application/octet-stream"
    return f"{found}; charset=utf-8" if found.startswith("text/") else found


def entity_tag(state: FileState) -> bytes:
    """Make the strong entity tag of a file in one state.

    The time of change is in it, which nobody can set: ``cp -p`` over a file keeps the other times.
    Only a change of bytes in place within one tick of file time escapes it. Hashed, as nobody is to
    learn the numbers of inodes.
    """
    told = f"{state.inode} {state.size} {state.mtime_ns} {state.ctime_ns}"
    return b'"%b"' % sha256(told.encode()).hexdigest()[:32].encode()


def _entity_tag_of_store(told: str) -> bytes:
    """Make an entity tag of what a store calls one; some stores leave out the quotes."""
    if _ENTITY_TAG.fullmatch(told):
        return told.encode("latin-1")
    return b'"%b"' % sha256(told.encode()).hexdigest()[:32].encode()


def validators_of(state: FileState) -> Validators:
    """Say what tells a file in one state from others; a date in the future is now (§8.8.2.1)."""
    return Validators(entity_tag(state), min(state.mtime_ns // 10**9, int(time.time())))


def validators_of_object(snapshot: StoreObject) -> Validators:
    """Say what tells an object of a store from others: what the store does, or nothing."""
    told = snapshot.etag
    return Validators(None if told is None else _entity_tag_of_store(told), None)


class Representation:
    """Bytes that do not change, and what is said of them in every answer.

    Args:
        source: the bytes.
        media_type: what they are.
        validators: what tells them from other versions.
        extra: header fields that replace those of the same name.
        file: the file that they are in, if a server may copy them from there by itself.
    """

    __slots__ = ("_file", "_source", "fields", "media_type", "size", "validators")

    def __init__(
        self,
        source: BodySource,
        media_type: str,
        validators: Validators,
        extra: Fields | None = None,
        file: MappedFile | None = None,
    ) -> None:
        self._source = source
        self._file = file
        self.size: int = source.size
        self.media_type: bytes = media_type.encode("latin-1")
        self.validators: Validators = validators
        #: The header fields of every answer but refusals.
        self.fields: Fields = _fields(validators)
        if extra:
            given = {name for name, _ in extra}
            self.fields = [*extra, *(field for field in self.fields if field[0] not in given)]

    async def read(self, offset: int, length: int) -> bytes:
        """Read a piece of the body."""
        return await self._source.read_exact(offset, length)

    @property
    def lent(self) -> MappedFile | None:
        """The file that a server may copy from by itself; None if it may not."""
        return self._file


def _fields(validators: Validators) -> Fields:
    fields = [(b"accept-ranges", b"bytes")]
    if validators.etag is not None:
        fields.append((b"etag", validators.etag))
    if validators.modified is not None:
        date = formatdate(validators.modified, usegmt=True)
        fields.append((b"last-modified", date.encode()))
    return fields


class OpenDescriptor:
    """The file object that ``os.sendfile`` needs, over a descriptor that others close."""

    __slots__ = ("_fd",)

    #: What asyncio's ``sendfile`` looks at.
    mode = "rb"

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd


class Version(Representation):
    """A file of a folder in one state, open for as long as a response or the cache refers to it."""

    __slots__ = ("__weakref__", "_spoiled", "path", "state")

    def __init__(self, generation: Generation, path: str, media_type: str) -> None:
        self.path: str = path
        self.state: FileState = generation.state
        super().__init__(
            generation, media_type, validators_of(self.state), file=generation.resource.file
        )
        #: What the file is since somebody wrote to it in place, if so: it may be in pieces of two
        #: versions.
        self._spoiled: FileState | None = None

    def spoil(self, found: FileState) -> None:
        """Take note that bytes of the file are not what they were: no more of it is read."""
        self._spoiled = found

    def abandon(self) -> None:
        """Take note that the file will not be closed, as its loop has ended."""
        if self._file is not None:
            self._file._core.begin_closing()  # noqa: SLF001  as a snapshot does

    async def read(self, offset: int, length: int) -> bytes:
        """Read a piece of the body, unless the file was changed in place."""
        if self._spoiled is not None:
            raise StaleSnapshotError(self.path, self.size, self._spoiled.size)
        return await self._source.read_exact(offset, length)
