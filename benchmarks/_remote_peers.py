"""The peers of the question ``remote``: caches of fsspec, and the mount of rclone."""

from __future__ import annotations

import importlib.util
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.support.remote_servers import BUCKET

from ._harness import MIB

BLOCK = 256 << 10
READ = 4096
CHUNK = 8 * MIB


def has_fsspec() -> bool:
    return all(importlib.util.find_spec(name) for name in ("fsspec", "aiohttp"))


def by_fsspec(url: str, kind: str, folder: str) -> Any:
    """Open the object through one of fsspec's caches on disk."""
    import fsspec

    options = {"cache_storage": folder}
    if kind == "blockcache":
        return fsspec.open(f"blockcache::{url}", blockcache=options, block_size=BLOCK).open()
    return fsspec.open(f"filecache::{url}", filecache=options).open()


def read_by_s3fs(folder: str, options: dict[str, str]) -> None:
    """Read the first bytes of an object through blockcache over s3fs."""
    import fsspec

    cache = {"cache_storage": folder}
    url = f"blockcache::s3://{BUCKET}/object"
    with fsspec.open(url, blockcache=cache, s3=options, block_size=BLOCK) as file:
        file.read(READ)


def read_by_rclone(
    url: str, folder: str, tool: str, most: int | None = None
) -> tuple[float, float, float]:
    """Mount the server with an empty cache, and read the object, all of it or ``most`` bytes.

    Returns:
        Seconds until it is mounted; from then, seconds until the first bytes, and until the last.
    """
    place = Path(folder) / "mounted"
    place.mkdir(parents=True)
    source = f":http,url='{url.rpartition('/')[0]}/':"
    options = ["--read-only", "--vfs-cache-mode", "full", "--cache-dir", f"{folder}/vfs"]
    command = [tool, "mount", source, str(place), "--config", f"{folder}/none", *options]
    begun = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            while not place.is_mount() and process.poll() is None:
                time.sleep(0.001)
            start = time.perf_counter()
            mounting = start - begun
            with open(place / "object", "rb", buffering=0) as file:
                file.read(READ)
                first = time.perf_counter() - start
                while most is None and file.read(CHUNK):
                    pass
            return mounting, first, time.perf_counter() - start
        finally:
            process.terminate()  # which unmounts
            process.wait()
