"""Serve a table that is replaced while it is served: ``python examples/hot_swap_service.py FILE``.

The table is a file of fixed-length records and a checksum, such as a nightly job may build:

    8 bytes magic, 8 bytes record length, records, 32 bytes SHA-256 of everything before it

Rename a new table over FILE, and it is in service a moment later, without a restart. The service
answers each request from the table that was in service when the request began. It never serves a
damaged table; ``GET /`` lists the tables that it refused.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import TypedDict

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import aiommap

MAGIC = b"RECORDS1"
HEADER_BYTES, CHECKSUM_BYTES = 16, 32
CHUNK_BYTES = 1 << 20


class Shared(TypedDict):
    """The state that every request finds in ``request.state``."""

    live: aiommap.LiveSnapshot
    refused: list[str]


async def record_length(table: aiommap.Snapshot) -> int:
    """Check the header and return the length of a record."""
    header = await table.read_exact(0, min(HEADER_BYTES, table.size))
    length = int.from_bytes(header[8:], "little")
    records = table.size - HEADER_BYTES - CHECKSUM_BYTES
    if header[:8] != MAGIC or not length or records < 0 or records % length:
        raise ValueError(f"{table.path} is no table: {table.size} bytes, begins {header!r}")
    return length


async def validate(table: aiommap.Snapshot) -> None:
    """Refuse a file that is no table, or whose bytes are not those that were written."""
    await record_length(table)
    end = table.size - CHECKSUM_BYTES
    digest = hashlib.sha256()
    for offset in range(0, end, CHUNK_BYTES):
        digest.update(await table.read_exact(offset, min(CHUNK_BYTES, end - offset)))
    if digest.digest() != await table.read_exact(end, CHECKSUM_BYTES):
        raise ValueError(f"{table.path} is damaged: its checksum is not that of its records")


async def get_record(request: Request) -> Response:
    """Answer one record; ask for ``current`` once, so that the whole answer is of one table."""
    live: aiommap.LiveSnapshot = request.state.live
    table, generation = live.current, live.generation
    length = await record_length(table)
    offset = HEADER_BYTES + request.path_params["number"] * length
    if offset + length > table.size - CHECKSUM_BYTES:
        raise HTTPException(404, "there is no such record")
    body = await table.read_exact(offset, length)
    return Response(body, headers={"x-generation": str(generation)})


async def get_status(request: Request) -> Response:
    """Tell which generation is in service, and which files were refused recently."""
    live: aiommap.LiveSnapshot = request.state.live
    facts = {"generation": live.generation, "size": live.current.size}
    return JSONResponse(facts | {"refused": request.state.refused})


def make_app(path: str) -> Starlette:
    """Make the application that serves the table at a path."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Shared]:
        refused: list[str] = []

        def refuse(error: Exception) -> None:
            refused[:] = [*refused[-9:], str(error)]

        async with aiommap.follow(path, validate=validate, on_error=refuse) as live:
            yield {"live": live, "refused": refused}

    routes = [Route("/", get_status), Route("/records/{number:int}", get_record)]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a table that is replaced meanwhile.")
    parser.add_argument("file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free")
    options = parser.parse_args()
    app = make_app(options.file)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        access_log=False,  # written on the loop: a full pipe would stop every client
        timeout_graceful_shutdown=5,  # seconds: a client that stalls does not hold up the end
    )


if __name__ == "__main__":
    main()
