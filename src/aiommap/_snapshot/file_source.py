"""The source of a follower that follows the file at a path."""

from __future__ import annotations

from .._core.options import OpenOptions
from .._hub.hub import Hub
from .._watch.changes import ChangeKind
from .follower import News
from .generation import Generation

#: After one of these the bytes may have changed although size and times are those of an earlier
#: state: one change may have moved them, and the next have set them back.
_IN_PLACE = frozenset(
    {ChangeKind.MODIFIED, ChangeKind.CHANGED, ChangeKind.GROWN, ChangeKind.TRUNCATED}
)


class FileSource:
    """A path, watched and opened in a hub.

    Args:
        hub: opens and watches the file.
        options: how to open the file; the trial makes it resident.
    """

    def __init__(self, hub: Hub, options: OpenOptions) -> None:
        self._hub = hub
        self._options = options
        self._changes = hub.watch(options.path, buffer=1)

    @property
    def path(self) -> str:
        """The absolute path."""
        return self._options.path

    @property
    def is_closed(self) -> bool:
        """Whether following or the hub has ended."""
        return self._changes.ended or self._hub._closed  # noqa: SLF001  a kind of its files

    async def begin(self) -> None:
        """Watch the path (I11)."""
        await self._changes.__aenter__()

    async def next(self) -> News:
        """Wait for a change of the path."""
        change = await anext(self._changes)
        return News(change.new, doubtful=change.kind in _IN_PLACE)

    async def open(self) -> Generation:
        """Open the file that the path names."""
        return await Generation.of(self._hub, self._options)

    def end(self) -> None:
        """Stop watching."""
        self._changes.close()
