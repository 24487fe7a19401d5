"""The engine for every file system that fsspec has, by its blocking calls.

fsspec cannot fetch under a condition. So we ask for the state after each fetch, too: if it is still
the state that was opened, the bytes are of that state. This costs one more request for each fetch.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .._arguments import check_kind
from .._errors import MappedFileError, RemoteError
from .._typing import Buffer
from .naming import address_in_file_system
from .source import RemoteState, without_secrets

#: The names under which file systems of fsspec give what we ask for; the most exact come first.
_ETAGS = ("ETag", "etag", "e_tag", "md5Hash", "content_md5")
_VERSIONS = ("VersionId", "version_id", "generation")
_MODIFIED = ("LastModified", "last_modified", "updated", "mtime", "Last-Modified", "created")


class FsspecSource:
    """An object of an fsspec file system, with the file system's own configuration.

    Args:
        fs: an ``fsspec.AbstractFileSystem``. Only its blocking calls are used, also of an
            asynchronous one.
        path: the object, as the file system names it.
        url: the object's address; by default the one that the file system gives.
    Raises:
        TypeError: if ``fs`` is no file system.
    """

    __slots__ = ("_fs", "_path", "_url")

    def __init__(self, fs: Any, path: str, *, url: str | None = None) -> None:
        if not callable(getattr(fs, "cat_file", None)) or not callable(getattr(fs, "info", None)):
            raise TypeError(f"fs is {fs!r}: give an fsspec file system")
        self._fs = fs
        self._path = check_kind(path, str, "path", 'give a str, such as "bucket/key"')
        self._url = without_secrets(url or address_in_file_system(fs, path))

    @property
    def url(self) -> str:
        """The object's address, without secrets."""
        return self._url

    def __eq__(self, other: object) -> bool:
        """Tell whether another source asks the same file system for the same object."""
        return isinstance(other, FsspecSource) and self._asks == other._asks

    def __hash__(self) -> int:
        return hash(self._asks)

    @property
    def _asks(self) -> tuple[object, ...]:
        return (id(self._fs), self._path, self._url)

    def beside(self, name: str) -> FsspecSource:
        """Return a source of another file of the file system, below the folder of this one.

        Raises:
            ValueError: if the name leads out of the folder.
        """
        if ".." in name.split("/"):
            raise ValueError(f"{name!r} leads out of the folder of {self._url}")
        folder = self._path.rpartition("/")[0]
        return FsspecSource(self._fs, f"{folder}/{name.lstrip('/')}" if folder else name)

    def stat(self, known: RemoteState | None) -> RemoteState | None:
        """Ask what the object is now; as ``RemoteSource.stat``."""
        state = self._state()
        return None if state == known else state

    def fetch(self, start: int, end: int, state: RemoteState) -> tuple[Buffer, RemoteState]:
        """Fetch bytes; as ``RemoteSource.fetch``. The state is the one after the bytes came."""
        del state
        try:
            data = self._fs.cat_file(self._path, start=start, end=end)
        except Exception as error:
            failure = self._translated(error, start, end - start)
        else:
            return data, self._state()
        raise failure  # here, because a context may have a secret (R13)

    def _state(self) -> RemoteState:
        try:
            # The file system caches listings, and we need the object as it is now.
            self._fs.invalidate_cache(self._fs._parent(self._path))  # noqa: SLF001  fsspec's way
            info: Mapping[str, Any] = self._fs.info(self._path)
        except Exception as error:
            failure = self._translated(error, 0, 0)
        else:
            return self._state_of(info)
        raise failure

    def _state_of(self, info: Mapping[str, Any]) -> RemoteState:
        size = info.get("size")
        if not isinstance(size, int):
            raise RemoteError(self._url, "the file system does not say how large the object is")
        return RemoteState(
            size=size,
            etag=_first(info, _ETAGS),
            version=_first(info, _VERSIONS),
            modified=_first(info, _MODIFIED),
        )

    def _translated(self, error: Exception, start: int, length: int) -> Exception:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            number = error.errno or (2 if isinstance(error, FileNotFoundError) else 13)
            return type(error)(number, without_secrets(str(error)), self._url)
        if isinstance(error, MappedFileError):
            return error
        text = without_secrets(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        status = getattr(error, "status", None)
        known = status if isinstance(status, int) else None
        return RemoteError(self._url, text, start, length, known)

    def __repr__(self) -> str:
        return f"<FsspecSource {self._url}>"


def _first(info: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    found = next((info[name] for name in names if info.get(name) not in (None, "")), None)
    if isinstance(found, datetime):
        return found.astimezone(UTC).isoformat()
    return None if found is None else str(found)
