"""Statistics of one mapped file, as a frozen snapshot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileStatistics:
    """What a mapped file has done since it was opened.

    Attributes:
        inline_reads: reads answered on the loop thread, without a worker.
        offloaded_reads: reads answered by a worker thread.
        fell_back_reads: attempts to read inline that the kernel, or the residency check, refused:
            the data was not in memory, or the file system has no NOWAIT reads.
        inline_writes: writes stored on the loop thread.
        offloaded_writes: writes stored by a worker thread.
        dirty_bytes: bytes in pages stored to and not flushed since; in mode "c" the bytes in
            private pages. A writable ``View.memory`` counts while it is held.
        flushes: flushes that ran.
        flush_requests: requests that they answered.
        largest_flush_group: most requests answered by one flush.
        faults: copies that met a page that could not be reached.
        leases: views that still pin the mapping.
    """

    inline_reads: int
    offloaded_reads: int
    fell_back_reads: int
    inline_writes: int
    offloaded_writes: int
    dirty_bytes: int
    flushes: int
    flush_requests: int
    largest_flush_group: int
    faults: int
    leases: int
