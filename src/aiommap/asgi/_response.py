"""The response that sends one file, for endpoints of Starlette and FastAPI."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import quote, urlsplit

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import Response

from .._core.paths import absolute_path
from .._errors import UnsupportedError
from .._file.mapped_file import MappedFile
from .._hub.hub import Hub
from .._snapshot.snapshot import Snapshot
from .._storage.mapped import MappedBackend
from .._storage.protocol import StorageBackend
from ._representation import (
    Representation,
    StoreObject,
    media_type_of,
    validators_of,
    validators_of_object,
)
from ._requests import Validators
from ._sending import Answer, Receive, Scope, Send, refuse

Source = str | os.PathLike[str] | MappedFile | Snapshot | StorageBackend

_OCTETS = "application/octet-stream"
_UNKNOWN = Validators(None, None)


class MappedFileResponse(Response):
    """A response that sends a file, or the byte ranges of it that are requested.

    It answers GET and HEAD with byte ranges and conditions, as ``MappedFiles`` does, and replaces
    Starlette's ``FileResponse``. A snapshot, such as ``live.current``, is held until it is sent. A
    ``RemoteSnapshot`` has the entity tag of its store. A path is opened for this response alone: if
    a file is requested often, keep a snapshot of it open, or serve its folder by ``MappedFiles``.
    If the file loses bytes while it is sent, the response is broken off.

    Args:
        source: a path, an open file, a snapshot, a ``RemoteSnapshot``, or any other
            ``StorageBackend``. The response does not close an open source.
        headers: header fields to send; they replace fields of the same name. Give the entity tag of
            a backend that is not a file here: ``{"etag": '"…"'}``.
        media_type: the media type; by default it is guessed from the name of the file.
        filename: the name under which browsers save the body; None sends none.
        content_disposition_type: "attachment"; or "inline", to have browsers show the body although
            it has a filename.
        background: a task to run after the response was sent.
        hub: the hub that opens the path; None makes one.
    Raises:
        starlette.exceptions.HTTPException: when it is called: 404 if the path leads to no regular
            file, 403 if the file may not be read.
        MappingFaultError: when it is called, if the file has lost the bytes.
        StaleSnapshotError, RemoteError: when it is called, if the store has lost the bytes, or
            cannot be reached.
    """

    def __init__(
        self,
        source: Source,
        *,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        filename: str | None = None,
        content_disposition_type: Literal["attachment", "inline"] = "attachment",
        background: BackgroundTask | None = None,
        hub: Hub | None = None,
    ) -> None:
        if isinstance(source, str | os.PathLike):
            source = absolute_path(source)
        self._source = source
        self._hub = hub
        self.status_code = 200
        self.background = background
        self.media_type = None  # otherwise init_headers would send it with every answer
        self.init_headers(headers)
        self.media_type: str | None = media_type
        if filename is not None:
            self.headers.setdefault(
                "content-disposition", _disposition(content_disposition_type, filename)
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; the framework calls this."""
        if scope["method"] not in ("GET", "HEAD"):
            await refuse(405, scope, send, (b"allow", b"GET, HEAD"))
            return
        async with self._opened() as shown:
            answer = Answer(scope, shown)
            await answer.begin()
            await answer.send(scope, receive, send)
        if self.background is not None:
            await self.background()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Representation]:
        """Keep the source open, or hold it, for the block."""
        source = self._source
        if isinstance(source, str):
            try:
                opened = await Snapshot.open(source, hub=self._hub)
            except (FileNotFoundError, NotADirectoryError, UnsupportedError):
                raise HTTPException(404) from None
            except PermissionError:
                raise HTTPException(403) from None
            async with opened:
                yield self._represent(opened)
        elif isinstance(source, Snapshot | StoreObject):
            with source.hold():
                yield self._represent(source)
        else:
            yield self._represent(source)

    def _represent(self, source: MappedFile | Snapshot | StorageBackend) -> Representation:
        """Make the representation of an open source."""
        file = path = None
        validators = _UNKNOWN
        if isinstance(source, MappedFile):
            file = source
        elif isinstance(source, Snapshot):
            file = source._file  # noqa: SLF001  one more thing that is made of it
        elif isinstance(source, StoreObject):
            path = urlsplit(source.url).path
            validators = validators_of_object(source)
        if file is not None:
            path = file.path
            if file.mode == "r":
                validators = validators_of(file._core.state)  # noqa: SLF001
        given = dict(self.raw_headers)
        if b"etag" in given:
            validators = Validators(given[b"etag"], validators.modified)
        kind = self.media_type or given.get(b"content-type", b"").decode("latin-1")
        if not kind:
            kind = _OCTETS if path is None else media_type_of(path)
        body = MappedBackend(source) if isinstance(source, MappedFile) else source
        extra = [field for field in self.raw_headers if field[0] != b"content-type"]
        private = file is not None and file.mode == "c"  # its private stores are not in the file
        return Representation(body, kind, validators, extra, None if private else file)


def _disposition(kind: str, filename: str) -> str:
    """Write a Content-Disposition (RFC 6266, RFC 8187)."""
    quoted = quote(filename, safe="")
    plain = quoted == filename
    return f'{kind}; filename="{filename}"' if plain else f"{kind}; filename*=utf-8''{quoted}"
