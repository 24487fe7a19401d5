"""A remote snapshot as a binary file object, for libraries that know no event loop."""

from __future__ import annotations

import io


class RemoteSnapshotFile(io.RawIOBase):
    """A read-only, seekable binary file over a remote snapshot; made by ``RemoteSnapshot.file``.

    pandas, pyarrow, zarr, zipfile and the like take it in place of a path. A read of what is not
    cached fetches it, in the thread that reads; so make reads in a worker thread. On the event
    loop's thread they raise. It holds the snapshot until it is closed.

    Attributes:
        path: the URL of the object.
        size: its size in bytes.
        mode: "rb".

    Concurrency: it has one position, as any file object, so one thread uses it at a time.
    """

    mode = "rb"
    path: str
    size: int
