"""Immutable objects of a store, read through a local mapped cache.

Make a ``RemoteCache``, and open objects with ``cache.open("s3://bucket/key")``. To read URLs,
install the extra ``remote``, which brings obstore; a source of your own needs nothing.
"""

from __future__ import annotations

from ._errors import RemoteError as RemoteError
from ._remote.cache import RemoteCache as RemoteCache
from ._remote.following import LiveRemoteSnapshot as LiveRemoteSnapshot
from ._remote.fsspec import FsspecSource as FsspecSource
from ._remote.obstore import ObstoreSource as ObstoreSource
from ._remote.remote_file import RemoteSnapshotFile as RemoteSnapshotFile
from ._remote.remote_folder import RemoteFolder as RemoteFolder
from ._remote.remote_snapshot import RemoteSnapshot as RemoteSnapshot
from ._remote.source import RemoteSource as RemoteSource
from ._remote.source import RemoteState as RemoteState
from ._remote.statistics import CacheEntry as CacheEntry
from ._remote.statistics import CacheReport as CacheReport
from ._remote.statistics import CacheStatistics as CacheStatistics
from ._remote.statistics import RemoteResidency as RemoteResidency

__all__ = (
    "CacheEntry",
    "CacheReport",
    "CacheStatistics",
    "FsspecSource",
    "LiveRemoteSnapshot",
    "ObstoreSource",
    "RemoteCache",
    "RemoteError",
    "RemoteFolder",
    "RemoteResidency",
    "RemoteSnapshot",
    "RemoteSnapshotFile",
    "RemoteSource",
    "RemoteState",
)


def _adopt() -> None:
    """Make tracebacks, reprs and pickles name this module, not the private one of a class."""
    for name in __all__:
        globals()[name].__module__ = __name__


_adopt()
del _adopt
