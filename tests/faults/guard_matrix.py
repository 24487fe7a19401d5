"""One row of the fault matrix, in a process of its own: the effect of a fault on every access.

``python guard_matrix.py FOLDER FAULT BACKEND`` prints JSON objects, one line per access:

    access    its name
    error     the error it raised, or null
    right     whether it read the bytes of the file, or the file has the bytes that it stored
    first_bad the offset at which the mapping was poisoned, or null
    silent    the verbs that raised nothing when called afterwards
    offsets   the offsets in the errors that called the mapping poisoned

It only measures; test_guard_matrix.py judges. The fault strikes page BAD.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import numpy as np

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.loops import run_on

PAGES, BAD = 16, 10
SIZE, AT = PAGES * PAGE, BAD * PAGE + 100
OLD, NEW, ZERO = b"o" * 8, b"n" * 8, bytes(8)
#: Faults that leave a hole in place of BAD: it reads as zeros, and no byte is lost.
HOLES = ("hole", "full_tmpfs", "full_ext4")


def make(path: Path, fault: str) -> None:
    with open(path, "wb") as file:
        file.write(b"o" * SIZE)
        if fault in ("full_tmpfs", "full_ext4"):
            file.truncate(BAD * PAGE)
            file.truncate(SIZE)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill(path: Path) -> None:
    """Fill the rest of the disk."""
    with open(path, "ab", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(PAGE)):
            pass


def strike(path: Path, fault: str) -> None:
    """Cause the fault behind the back of the library, as another program would."""
    if fault.startswith("truncate"):
        size = {"truncate_0": 0, "truncate_mid": BAD * PAGE - 50, "truncate_earlier": PAGE}[fault]
        os.truncate(path, size)
    elif fault == "hole":
        subprocess.run(
            ["fallocate", "-p", "-o", str(BAD * PAGE), "-l", str(PAGE), str(path)], check=True
        )
    elif fault.startswith("full"):
        fill(path.with_name("filler"))
    elif fault == "eio":
        path.with_name(".control").write_text(f"read {path.name} 1")


def relent(path: Path, fault: str) -> None:
    """Undo the fault as far as possible, so that the test can read the file."""
    path.with_name("filler").unlink(missing_ok=True)
    if fault == "eio":
        path.with_name(".control").write_text(f"read {path.name} {1 << 40}")


class Access:
    """The file, view and memory that an access works on."""

    def __init__(self, f: aiommap.MappedFile, old: bytes) -> None:
        self.f = f
        self.old = old  # the bytes at AT once the fault has struck, if they can be read
        self.view = f.view()
        self.receipt: aiommap.WriteReceipt | None = None
        self.memory = memoryview(b"")
        self.array: Any = None

    def expose(self) -> None:
        """Take the memory; only for foreign accesses, because it makes pages dirty."""
        self.memory = self.view.memory
        self.array = np.frombuffer(self.memory, dtype="u1")

    async def release(self) -> None:
        self.array = None
        self.memory.release()
        self.view.release()


def numpy_read(a: Access) -> bytes:
    return a.array[AT : AT + 8].tobytes()


def memory_slice(a: Access) -> bytes:
    return bytes(a.memory[AT : AT + 8])


def unpack_from(a: Access) -> bytes:
    return struct.unpack_from("8s", a.memory, AT)[0]


def numpy_write(a: Access) -> None:
    a.array[AT : AT + 8] = ord("n")


def memory_store(a: Access) -> None:
    a.memory[AT : AT + 8] = NEW


def pack_into(a: Access) -> None:
    struct.pack_into("8s", a.memory, AT, NEW)


def recv_into(a: Access) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(NEW)
        assert right.recv_into(a.memory[AT:], 8) == 8


def send(a: Access) -> bytes:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(a.memory[AT : AT + 8])
        return right.recv(8)


async def read(a: Access) -> bytes:
    return await a.f.read(AT, 8)


async def read_whole(a: Access) -> bytes:
    return (await a.f.read(0, SIZE))[AT : AT + 8]


async def read_into(a: Access) -> bytes:
    buffer = bytearray(8)
    await a.f.read_into(AT, buffer)
    return bytes(buffer)


async def read_nowait(a: Access) -> bytes:
    return a.f.read_nowait(AT, 8)


async def read_many(a: Access) -> bytes:
    return (await a.f.read_many([(0, 8), (AT, 8)]))[1]


async def chunks(a: Access) -> bytes:
    return b"".join([chunk async for chunk in a.f.chunks(3 * PAGE)])[AT : AT + 8]


async def view_read(a: Access) -> bytes:
    return await a.f.view(AT, 100).read(0, 8)


async def locked_read(a: Access) -> bytes:
    async with a.f.locked():
        return await a.f.read(AT, 8)


def words(a: Access) -> list[aiommap.AtomicU32]:
    return [a.f.atomic_u32(AT), a.f.atomic_u32(AT + 4)]


async def atomic_load(a: Access) -> bytes:
    return b"".join(word.load().to_bytes(4, sys.byteorder) for word in words(a))


async def prewarmed_read(a: Access) -> bytes:
    await a.f.prewarm()
    return await a.f.read(AT, 8)


async def write(a: Access) -> None:
    a.receipt = await a.f.write(AT, NEW)


async def write_many(a: Access) -> None:
    a.receipt = await a.f.write_many([(0, OLD), (AT, NEW)])


async def view_write(a: Access) -> None:
    a.receipt = await a.f.view(AT, 100).write(0, NEW)


async def prewarmed_write(a: Access) -> None:
    await a.f.prewarm(write=True)
    a.receipt = await a.f.write(AT, NEW)


async def fetch_add(a: Access) -> None:
    wanted, old = (int.from_bytes(text[:4], sys.byteorder) for text in (NEW, a.old))
    for word in words(a):
        word.fetch_add((wanted - old) % (1 << 32))


async def atomic_store(a: Access) -> None:
    for word in words(a):
        word.store(int.from_bytes(NEW[:4], sys.byteorder))


async def flushed_write(a: Access) -> None:
    a.f.flush_policy = aiommap.FlushPolicy.always()
    a.receipt = await a.f.write(AT, NEW)


async def punch_hole(a: Access) -> None:
    await a.f.punch_hole(BAD * PAGE, PAGE)
    a.receipt = await a.f.write(AT, NEW)


async def resize(a: Access) -> None:
    await a.f.resize(SIZE // 2)
    await a.f.resize(SIZE)
    a.receipt = await a.f.write(AT, NEW)


FOREIGN_READS: dict[str, Callable[[Access], bytes]] = {
    f.__name__: f for f in (numpy_read, memory_slice, unpack_from, send)
}
FOREIGN_WRITES: dict[str, Callable[[Access], None]] = {
    f.__name__: f for f in (numpy_write, memory_store, pack_into, recv_into)
}
READS = {
    f.__name__: f
    for f in (
        read,
        read_whole,
        read_into,
        read_nowait,
        read_many,
        chunks,
        view_read,
        locked_read,
        atomic_load,
        prewarmed_read,
    )
}
WRITES = {
    f.__name__: f
    for f in (
        write,
        write_many,
        view_write,
        prewarmed_write,
        flushed_write,
        fetch_add,
        atomic_store,
        punch_hole,
        resize,
    )
}
#: Verbs that are called afterwards; some of them touch no page.
AFTERWARDS: dict[str, Callable[[Access], Any]] = {
    "read": lambda a: a.f.read(0, 1),
    "read_into": lambda a: a.f.read_into(0, bytearray(1)),
    "read_many": lambda a: a.f.read_many([(0, 1)]),
    "prewarm": lambda a: a.f.prewarm(0, 1),
    "residency": lambda a: a.f.residency(),
    "advise": lambda a: a.f.advise(aiommap.Advice.RANDOM),
    "locked": lambda a: a.f.locked(0, 1).__aenter__(),
    "start_writeback": lambda a: a.f.start_writeback(),
    "chunks": lambda a: anext(a.f.chunks(PAGE)),
    "write": lambda a: a.f.write(0, b"o"),
    "write_many": lambda a: a.f.write_many([(0, b"o")]),
    "flush": lambda a: a.f.flush(),
    "flush_range": lambda a: a.f.flush_range(0, SIZE),
    "receipt": lambda a: a.receipt.wait_durable() if a.receipt else a.f.flush(),
    "punch_hole": lambda a: a.f.punch_hole(0, 0),
    "resize": lambda a: a.f.resize(SIZE),
    "aclose": lambda a: a.f.aclose(),
}


async def attempt(a: Access, access: Callable[[Access], Any]) -> tuple[bytes | None, str | None]:
    try:
        found = access(a)
        return (await found if hasattr(found, "__await__") else found), None
    except (aiommap.MappedFileError, anyio.WouldBlock, OSError) as error:
        return None, f"{type(error).__name__} {errno.errorcode.get(getattr(error, 'errno', 0), '')}"


async def ask_afterwards(a: Access) -> tuple[list[str], list[int]]:
    silent, offsets = [], []
    for name, verb in AFTERWARDS.items():
        if name == "aclose":
            await a.release()
        try:
            await verb(a)
        except aiommap.MappingFaultError as error:
            if error.poisoned:
                offsets.append(error.offset)
        except (aiommap.MappedFileError, OSError):
            pass
        else:
            silent.append(name)
    return silent, sorted(set(offsets))


async def run(folder: Path, fault: str, name: str) -> dict[str, object]:
    path = folder / name
    make(path, fault)
    f = await aiommap.open(path, "r+", flush=aiommap.FlushPolicy.manual())
    old = ZERO if fault in HOLES else OLD
    a = Access(f, old)
    stores = name in FOREIGN_WRITES or name in WRITES
    access = (FOREIGN_READS | FOREIGN_WRITES | READS | WRITES)[name]
    if name in FOREIGN_READS or name in FOREIGN_WRITES:
        a.expose()
    strike(path, fault)
    found, error = await attempt(a, access)
    first_bad = f._mapping.first_bad
    silent, offsets = await ask_afterwards(a)
    relent(path, fault)
    if stores:
        found = path.read_bytes()[AT : AT + 8]
    right = found == (NEW if stores else old)
    with suppress(FileNotFoundError):
        path.unlink()
    return {
        "access": name,
        "error": error,
        "right": right,
        "first_bad": first_bad,
        "silent": silent,
        "offsets": offsets,
    }


async def main(folder: Path, fault: str) -> None:
    for name in FOREIGN_READS | FOREIGN_WRITES | READS | WRITES:
        print(json.dumps(await run(folder, fault, name)), flush=True)


if __name__ == "__main__":
    run_on(sys.argv[3], main, Path(sys.argv[1]), sys.argv[2])
