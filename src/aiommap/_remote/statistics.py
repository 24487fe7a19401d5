"""Statistics and reports of a cache, as frozen snapshots; pure."""

from __future__ import annotations

from dataclasses import dataclass

from .source import RemoteState


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What one ``RemoteCache`` has done since it was made; each cache counts for itself.

    Attributes:
        hits: reads that the cache answered without any request.
        misses: reads that had to wait for a fetch.
        gets: requests for bytes that were sent; the engine's own retries are not counted.
        heads: requests for the state of an object that were sent.
        fetched_bytes: bytes that the requests for bytes brought.
        coalesced: waits for a block that another task or process was already fetching.
        stored_blocks: blocks that were written to the cache.
        unstored_blocks: blocks that were fetched but not stored, for want of room or by a failure.
        verified_blocks: blocks of an earlier boot whose checksum was right.
        bad_blocks: blocks whose checksum was wrong; they were given up.
        evicted_blocks: blocks that were given up to make room.
        evicted_bytes: their bytes.
        takeovers: blocks that were taken over from a process that died or was too slow.
        hedges: blocks that were fetched although the process that was fetching them is alive,
            because it was too slow.
        errors: failures of the cache itself; each was a miss, and no error of a read.
        used_bytes: bytes that all processes have reserved or stored in the folder.
        max_bytes: the limit of ``used_bytes``.
        open_objects: objects that this cache has open.
    """

    hits: int = 0
    misses: int = 0
    gets: int = 0
    heads: int = 0
    fetched_bytes: int = 0
    coalesced: int = 0
    stored_blocks: int = 0
    unstored_blocks: int = 0
    verified_blocks: int = 0
    bad_blocks: int = 0
    evicted_blocks: int = 0
    evicted_bytes: int = 0
    takeovers: int = 0
    hedges: int = 0
    errors: int = 0
    used_bytes: int = 0
    max_bytes: int = 0
    open_objects: int = 0


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One object in the folder of a cache, in one state.

    Attributes:
        url: its address, without user, password and query.
        state: its state, as the server gave it.
        block_size: bytes of a block.
        cached_bytes: bytes of it that can be read without a request.
        disk_bytes: bytes that its files take on the disk.
        opened: the folder's counter of openings when it was opened last; a larger number is more
            recent.
        in_use: whether some process has it open.
    """

    url: str
    state: RemoteState
    block_size: int
    cached_bytes: int
    disk_bytes: int
    opened: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What ``RemoteCache.verify`` found.

    Attributes:
        objects: objects whose blocks were compared with their checksums.
        blocks: blocks that were compared.
        bytes: their bytes.
        bad_blocks: blocks whose checksum was wrong; they were given up, and a read fetches them
            again.
        removed: objects that were deleted because their files were damaged.
    """

    objects: int
    blocks: int
    bytes: int
    bad_blocks: int
    removed: int


@dataclass(frozen=True, slots=True)
class RemoteResidency:
    """Where the bytes of a remote snapshot were at one moment.

    Attributes:
        size: bytes of the object.
        cached: bytes that the cache had, on its disk or in memory.
        resident: bytes of those that were in memory.
        remote: bytes that only the store had.
        runs: byte ranges ``(offset, end)`` that the cache had, in order.
        resident_runs: byte ranges ``(offset, end)`` of those that were in memory, in order.
    """

    size: int
    cached: int
    resident: int
    remote: int
    runs: tuple[tuple[int, int], ...]
    resident_runs: tuple[tuple[int, int], ...]
