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

#: The media types of compressed files: we send the file as it is, not its content.
_ENCODED = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}


#: A strong entity tag (RFC 9110 §8.8.3).
_ENTITY_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


class BodySource(Protocol):
    """The source of a body: a snapshot, or any other ``StorageBackend``."""

    @property
    def size(self) -> int: ...
    async def read_exact(self, offset: int, length: int, /) -> bytes: ...


@runtime_checkable
class StoreObject(BodySource, Protocol):
    """The part of a ``RemoteSnapshot`` that is used here, so that this need not import it."""

    @property
    def url(self) -> str: ...
    @property
    def etag(self) -> str | None: ...
    def hold(self) -> AbstractContextManager[object]: ...


# Read the system's tables at import, and not later on a loop.
if not mimetypes.inited:
    mimetypes.init()


def media_type_of(path: str) -> str:
    """Guess the media type of an absolute path from its name."""
    found, encoding = mimetypes.guess_type(path)
    if encoding is not None:
        found = _ENCODED.get(encoding)
    found = found or "application/octet-stream"
    return f"{found}; charset=utf-8" if found.startswith("text/") else found


def entity_tag(state: FileState) -> bytes:
    """Make the strong entity tag of a file in one state.

    It includes the time of change, which nobody can set: ``cp -p`` over a file sets the time of
    modification. Only a change of bytes in place within one tick of file time leaves it the same.
    It is hashed, so that clients do not learn inode numbers.
    """
    told = f"{state.inode} {state.size} {state.mtime_ns} {state.ctime_ns}"
    return b'"%b"' % sha256(told.encode()).hexdigest()[:32].encode()


def _entity_tag_of_store(told: str) -> bytes:
    """Make an entity tag from the ETag of a store; some stores leave out the quotes."""
    if _ENTITY_TAG.fullmatch(told):
        return told.encode("latin-1")
    return b'"%b"' % sha256(told.encode()).hexdigest()[:32].encode()


def validators_of(state: FileState) -> Validators:
    """Return the validators of a file in one state; a date in the future becomes now (§8.8.2.1)."""
    return Validators(entity_tag(state), min(state.mtime_ns // 10**9, int(time.time())))


def validators_of_object(snapshot: StoreObject) -> Validators:
    """Return the validators of an object: the ETag of its store, or none."""
    told = snapshot.etag
    return Validators(None if told is None else _entity_tag_of_store(told), None)


class Representation:
    """Bytes that do not change, and the header fields that describe them.

    Args:
        source: the source of the bytes.
        media_type: their media type.
        validators: tell them from other versions.
        extra: header fields that replace those of the same name.
        file: the file that has the bytes, if a server may copy them from it by itself.
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
    """The file object that ``os.sendfile`` needs; it does not own its descriptor."""

    __slots__ = ("_fd",)

    #: asyncio's ``sendfile`` checks this.
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
        #: The state of the file after somebody wrote to it in place: its bytes may be a mix of two
        #: versions. None if that did not happen.
        self._spoiled: FileState | None = None

    def spoil(self, found: FileState) -> None:
        """Note that bytes of the file were overwritten: no more of it is read."""
        self._spoiled = found

    def abandon(self) -> None:
        """Note that the file will not be closed, because its loop has ended."""
        if self._file is not None:
            self._file._core.begin_closing()  # noqa: SLF001  as a snapshot does

    async def read(self, offset: int, length: int) -> bytes:
        """Read a piece of the body, unless the file was changed in place."""
        if self._spoiled is not None:
            raise StaleSnapshotError(self.path, self.size, self._spoiled.size)
        return await self._source.read_exact(offset, length)
