"""What a cache tells of itself, as frozen snapshots; pure."""

from __future__ import annotations

from dataclasses import dataclass

from .source import RemoteState


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What one ``RemoteCache`` has done since it was made; other processes count for themselves.

    Attributes:
        hits: reads that the cache answered without any request.
        misses: reads that had to wait for a fetch.
        gets: requests for bytes that were sent; the engine's own retries are not counted.
        heads: requests for the state of an object that were sent.
        fetched_bytes: bytes that those responses brought.
        coalesced: waits for a block that somebody else was fetching already.
        stored_blocks: blocks that were written to the cache.
        unstored_blocks: blocks that were handed out without being stored: no room, or a failure.
        verified_blocks: blocks of an earlier boot whose checksum was right.
        bad_blocks: blocks whose checksum was wrong, and which were fetched anew.
        evicted_blocks: blocks that were given up to make room.
        evicted_bytes: their bytes.
        takeovers: blocks that were taken over from a process that died, or was too slow.
        hedges: those of them whose owner lives.
        errors: failures of the cache itself, each of which was a miss and no error of a read.
        used_bytes: bytes that all processes have reserved or stored in the folder.
        max_bytes: what they may not exceed.
        open_objects: objects that this process has open.
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
    """One object in the folder of a cache: one generation of it, with the blocks that are there.

    Attributes:
        url: where it came from, without user, password and query.
        state: what the server said of it.
        block_size: bytes of a block.
        cached_bytes: bytes of it that can be read without a request.
        disk_bytes: what it takes on the disk.
        opened: a counter of openings in this folder: the larger, the more recently it was opened.
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
        bad_blocks: blocks that were wrong; they were given up, and will be fetched anew.
        removed: objects that were given up because their files were damaged.
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
        cached: bytes that the cache has, on its disk or in memory.
        resident: bytes of those that were in memory.
        remote: bytes that only the store has.
        runs: byte ranges ``(offset, end)`` that the cache has, in order.
        resident_runs: byte ranges ``(offset, end)`` of those that were in memory, in order.
    """

    size: int
    cached: int
    resident: int
    remote: int
    runs: tuple[tuple[int, int], ...]
    resident_runs: tuple[tuple[int, int], ...]
