"""Opening a file by its URL path, and never one that is outside the folder.

Theory of operation. The kernel opens the file to which the path leads, links included. Then we ask
the kernel where the descriptor leads (``/proc/self/fd``), and close a file that is not below the
folder unread. We check the very file that we opened, so a link that is changed meanwhile cannot get
around the check. A check of the path before opening could be outdated by then, and O_NOFOLLOW for
each name would refuse links that stay inside, which Kubernetes uses.

Invariants.
  1  A version is of a regular file that was below the folder when it was opened.
  2  Only regular files are opened, because merely opening a pipe or a device can have effects.
     ``_core/opening`` sees to that.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from functools import partial

from .._core.options import OpenOptions
from .._errors import UnsupportedError
from .._hub.hub import Hub
from .._snapshot.generation import Generation
from ._representation import Version, media_type_of

#: The file that is sent for a folder.
INDEX = "index.html"

#: How often a path is opened while the root is changed to another folder.
MAX_TRIES = 3

_NOT_FOUND = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP})


@dataclass(frozen=True, slots=True)
class Refusal:
    """There is no file to send.

    Attributes:
        status: 404 or 403; 301 for a folder that was requested without a slash at the end; 502 if
            the store cannot be reached.
    """

    status: int


class Folder:
    """The folder of files to serve.

    Args:
        root: the absolute path of the folder; links in it are followed each time.
        hub: opens the files.
    """

    __slots__ = ("_hub", "_workers", "root")

    def __init__(self, root: str, hub: Hub) -> None:
        self._hub = hub
        self._workers = hub._running_workers()  # noqa: SLF001  one more user of its threads
        self.root = root

    def path_of(self, route: str) -> str:
        """Return the path of the file for a canonical URL path."""
        return self.root.rstrip("/") + route + (INDEX if route.endswith("/") else "")

    async def open(self, route: str) -> Version | Refusal:
        """Open the file for a canonical URL path.

        Raises:
            OSError: if the root is no folder, or the system lacks something to open the file, such
                as a descriptor.
            UnsupportedError: if it is a regular file that cannot be mapped.
        Cancellation: nothing is left open.
        """
        path = self.path_of(route)
        try:
            options = OpenOptions.check(path, "r")
        except ValueError:  # a lone surrogate, which no name on the disk can have
            return Refusal(404)
        for _ in range(MAX_TRIES):
            try:
                file = await self._hub._open(options)  # noqa: SLF001  as for any snapshot
            except OSError as error:
                return await self._refuse(error, route)
            opened = Generation(file)
            core = file._core  # noqa: SLF001  a snapshot is made of it
            examine = partial(self._examine, core.mapping.fd, path)
            media_type = await core.run(self._workers.control, examine)
            if media_type is not None:
                return Version(opened, path, media_type)
            opened.retire()
        return Refusal(404)

    async def check(self) -> None:
        """Raise unless the root is a folder."""
        await self._workers.run(self._workers.control, self._check)

    async def _refuse(self, error: OSError, route: str) -> Refusal:
        """Return the refusal for an error of opening; raise errors that no request caused."""
        status = await self._workers.run(self._workers.control, self._status_of, error, route)
        if status is None:
            raise error
        return Refusal(status)

    # Worker threads only, from here on.

    def _check(self) -> None:
        if not stat.S_ISDIR(os.stat(self.root).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.root)

    def _examine(self, fd: int, path: str) -> str | None:
        """Return the media type of an open file; None if it is outside the folder (folder.1)."""
        # If the file was removed, the kernel appends a note; the beginning is still its path.
        place = os.readlink(f"/proc/self/fd/{fd}")
        return media_type_of(path) if self._is_inside(place) else None

    def _is_inside(self, place: str) -> bool:
        """Tell whether a path without links is below the folder, where that is now."""
        return place.startswith(os.path.realpath(self.root).rstrip("/") + "/")

    def _status_of(self, error: OSError, route: str) -> int | None:
        """Return the status for a path that could not be opened; None to raise the error."""
        if isinstance(error, UnsupportedError):
            return self._status_of_kind(route)
        if error.errno in _NOT_FOUND:
            self._check()  # a missing root is no 404: it is a mistake in the setup
            return 404
        return 403 if error.errno in _FORBIDDEN else None

    def _status_of_kind(self, route: str) -> int | None:
        path = self.path_of(route)
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return 404
        folder = stat.S_ISDIR(mode)
        if not self._is_inside(os.path.realpath(path) + "/" * folder):
            return 404
        if folder:
            return 404 if route.endswith("/") else 301
        return None if stat.S_ISREG(mode) else 404
