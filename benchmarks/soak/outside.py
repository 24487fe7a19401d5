"""The other process, a script: it reads commands as lines of JSON, and answers in the same way."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

HEADER = struct.Struct("<QQ32s")
RECORD_BYTES = 64


def record(number: int) -> bytes:
    """Make a record for a writer that will be killed."""
    return hashlib.sha512(number.to_bytes(8, "little")).digest()


def truncate(path: str, size: int) -> None:
    """Make a file shorter, or longer."""
    os.truncate(path, size)


def overwrite(path: str, offset: int, content: str) -> None:
    """Write bytes, given as hexadecimal digits, into a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes.fromhex(content))


def copy_tail(source: str, path: str, offset: int) -> None:
    """Write the bytes of one file from an offset on to the same place of another."""
    with open(source, "rb") as original, open(path, "r+b") as file:
        original.seek(offset)
        file.seek(offset)
        file.write(original.read())


def numbered(number: int, size: int) -> bytes:
    """Make contents with their number, size and checksum in front."""
    body = random.Random(number).randbytes(size)
    return HEADER.pack(number, size, hashlib.sha256(body).digest()) + body


def replace(path: str, number: int, size: int) -> None:
    """Replace a file by a rename, as programs should."""
    with open(path + ".new", "wb") as file:
        file.write(numbered(number, size))
    os.replace(path + ".new", path)


def turn(folder: str, number: int) -> None:
    """Turn a folder to its next version, as Kubernetes does with a ConfigMap."""
    version, data = os.path.join(folder, f"..{number}"), os.path.join(folder, "..data")
    os.makedirs(version)
    for file in range(2 + number % 3):
        with open(os.path.join(version, str(file)), "wb") as made:
            made.write(numbered(number, 100 * file))
    old = os.path.join(folder, os.readlink(data)) if number else None
    os.symlink(f"..{number}", data + "_tmp")
    os.replace(data + "_tmp", data)
    if old is not None:
        shutil.rmtree(old)


def recreate(path: str, number: int, size: int) -> None:
    """Remove a file, and make another at its path."""
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(numbered(number, size))


def chmod(path: str, mode: int) -> None:
    """Change the permissions."""
    os.chmod(path, mode)


def stat(path: str) -> list[int]:
    """Return the state that a watcher must have seen last."""
    found = os.stat(path)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode]


async def add(path: str, times: int) -> None:
    """Count in three ways: by an atomic word, under an ``AsyncLock``, under a ``file_lock``."""
    import aiommap

    async with aiommap.open(path, "r+") as f:
        await f.prewarm(write=True)
        word, lock = f.atomic_u64(0), aiommap.AsyncLock(f, 8)
        for _ in range(times):
            word.fetch_add(1)
            async with lock:
                await _increment(f, 16)
            async with f.file_lock(24, 8):
                await _increment(f, 24)


async def _increment(f: Any, offset: int) -> None:
    value = int.from_bytes(await f.read(offset, 8), "little")
    await f.write(offset, (value + 1).to_bytes(8, "little"))


async def play(path: str, offset: int, turns: int) -> None:
    """Add one to a word whenever it is odd."""
    import aiommap

    async with aiommap.open(path, "r+") as f:
        word = f.atomic_u32(offset)
        for turn in range(turns):
            while word.load() == 2 * turn:
                await word.wait(2 * turn, timeout=20)
            word.fetch_add(1)
            word.notify()


def beat(seconds: float, interval: float) -> float:
    """Sleep again and again, and return the longest delay of a wake-up in seconds."""
    worst, last = 0.0, time.perf_counter()
    end = last + seconds
    while last < end:
        time.sleep(interval)
        now = time.perf_counter()
        worst, last = max(worst, now - last - interval), now
    return worst


def kill_a_writer(path: str, wanted: int) -> int:
    """Kill a process that writes records; return how many it reported as acknowledged."""
    writer = subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout is not None
        said = writer.stdout.read(8 * wanted)
        writer.kill()
        said += writer.stdout.read()
    return len(said) // 8


async def write_until_killed(path: str) -> None:
    """Write records, and report each on standard output once it was acknowledged."""
    import aiommap

    policy = aiommap.FlushPolicy.every_bytes(1 << 16)
    async with aiommap.open(path, "w+", size=1 << 20, flush=policy) as f:
        for number in range(f.size // RECORD_BYTES):
            await f.write(number * RECORD_BYTES, record(number))
            os.write(1, number.to_bytes(8, "little"))
        await asyncio.sleep(3600)  # until the parent kills this process


def kill_a_logger(folder: str, wanted: int) -> int:
    """Kill a process that appends to a log; return the last record it reported as durable."""
    writer = subprocess.Popen([sys.executable, __file__, folder, "log"], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout is not None
        said = writer.stdout.read(8 * wanted)
        writer.kill()
        said += writer.stdout.read()
    return int.from_bytes(said[len(said) // 8 * 8 - 8 :][:8], "little")


async def append_until_killed(folder: str) -> None:
    """Append records, and report on standard output the last durable one."""
    import aiommap

    policy = aiommap.FlushPolicy.every_writes(20)
    async with aiommap.Log.open(folder, segment_size=1 << 16, flush=policy) as log:
        while True:
            receipt = await log.append(record(log.last + 1))
            if receipt.sequence % 7 == 0:
                await receipt.wait_durable()
            os.write(1, log.durable.to_bytes(8, "little"))


VERBS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(truncate, overwrite, copy_tail, replace, turn, recreate, chmod, stat),
        *(add, play, beat, kill_a_writer, kill_a_logger),
    )
}


def obey(line: str) -> dict[str, object]:
    """Run the command of one line."""
    verb, *arguments = json.loads(line)
    try:
        result = VERBS[verb](*arguments)
        if isinstance(result, Coroutine):
            result = asyncio.run(result)
    except Exception as error:
        return {"error": repr(error)}
    return {"result": result}


def main() -> None:
    """Run commands until standard input ends."""
    if len(sys.argv) > 1:
        write = append_until_killed if len(sys.argv) > 2 else write_until_killed
        asyncio.run(write(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(obey(line)), flush=True)


if __name__ == "__main__":
    main()
