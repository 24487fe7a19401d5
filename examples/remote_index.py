"""Look words up in an index in an object store: ``python examples/remote_index.py URL WORD ...``.

The index is one object of fixed-length records, sorted by their words:

    56 bytes word, padded with zeros; 8 bytes number

The index may be far larger than this machine's memory or disk. A lookup is a binary search, which
reads a few blocks of it. The first blocks of a search are the same for all words, and soon cached.
Blocks that one process has fetched, the next process finds in the cache. ``--cache`` names its
folder, and ``aiommap cache list`` shows its contents.

Without words the program reads them from standard input, one a line, and follows the URL: after
somebody overwrites the index, it looks words up in the new one. Each lookup uses one index.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

import anyio
import anyio.to_thread

import aiommap
from aiommap.remote import RemoteCache, RemoteSnapshot

WORD_BYTES, RECORD_BYTES = 56, 64


def build(words: dict[str, int]) -> bytes:
    """Make the bytes of an index."""
    coded = sorted((word.encode(), number) for word, number in words.items())
    long = [word for word, _ in coded if len(word) > WORD_BYTES]
    if long:
        raise ValueError(f"{long[0]!r} has more than {WORD_BYTES} bytes")
    return b"".join(
        word.ljust(WORD_BYTES, b"\0") + number.to_bytes(8, "little") for word, number in coded
    )


async def look_up(index: RemoteSnapshot, word: str) -> int | None:
    """Find a word's number by a binary search; None if the index does not have it."""
    wanted = word.encode().ljust(WORD_BYTES, b"\0")
    low, high = 0, index.size // RECORD_BYTES
    while low < high:
        middle = (low + high) // 2
        record = await index.read_exact(middle * RECORD_BYTES, RECORD_BYTES)
        found = record[:WORD_BYTES]
        if found == wanted:
            return int.from_bytes(record[WORD_BYTES:], "little")
        low, high = (middle + 1, high) if found < wanted else (low, middle)
    return None


async def validate(index: RemoteSnapshot) -> None:
    """Refuse an object that cannot be an index."""
    if index.size % RECORD_BYTES:
        raise ValueError(f"{index.url} is no index: {index.size} bytes are no whole records")


async def answer(cache: RemoteCache, url: str, words: Iterable[str]) -> None:
    """Look some words up, and tell how many requests and bytes that took."""
    async with cache.open(url, read_ahead=False) as index:
        await validate(index)
        for word in words:
            print(word, await look_up(index, word))
    did = cache.statistics()
    print(f"{did.gets} GETs, {did.fetched_bytes} bytes of {index.size}", file=sys.stderr)


async def answer_lines(cache: RemoteCache, url: str, poll_interval: float) -> None:
    """Look up each line of standard input in the index that is then in service."""
    async with cache.follow(url, poll_interval=poll_interval, validate=validate) as live:
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            word = line.strip()
            while True:
                index = live.current  # one index for the whole search
                try:
                    print(word, await look_up(index, word), flush=True)
                    break
                except aiommap.StaleSnapshotError:
                    # The index was overwritten, and a block was not cached: wait for the new one.
                    async for newer in live:
                        if newer is not index:
                            break


async def run(options: argparse.Namespace) -> None:
    async with RemoteCache(options.cache, block_size=options.block) as cache:
        if options.words:
            await answer(cache, options.url, options.words)
        else:
            await answer_lines(cache, options.url, options.poll_interval)


def main() -> None:
    parser = argparse.ArgumentParser(description="Look words up in an index in an object store.")
    parser.add_argument("url", help="s3://bucket/key, gs://…, az://…, https://… or file:///…")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--cache", metavar="FOLDER", help="default: the user's folder of caches")
    parser.add_argument(
        "--block", type=int, default=64 << 10, help="bytes that are cached together"
    )
    parser.add_argument("--poll-interval", type=float, default=10.0, metavar="SECONDS")
    anyio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
