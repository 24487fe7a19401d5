"""Serve the files of a folder over HTTP: ``python examples/range_service.py FOLDER``.

``aiommap.asgi.MappedFiles`` is the whole application: it handles byte ranges, conditions, and files
that are replaced while they are served. docs/serving.md has more.
"""

import argparse

import uvicorn

from aiommap.asgi import MappedFiles


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the files of a folder over HTTP.")
    parser.add_argument("folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free")
    options = parser.parse_args()
    uvicorn.run(
        MappedFiles(options.folder),
        host=options.host,
        port=options.port,
        access_log=False,  # written on the loop: a full pipe would stop every client
        timeout_graceful_shutdown=5,  # seconds: a client that stalls does not hold up the end
    )


if __name__ == "__main__":
    main()
