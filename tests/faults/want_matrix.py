"""One row of the matrix of wants, in a process of its own: every verb without some resource.

``python want_matrix.py FOLDER WANT BACKEND`` prints JSON objects, one line per verb:

    verb     its name
    error    the error that it raised during the want, with its type, or null
    named    whether that error names the file
    after    the failure after the end of the want, or null
    left     descriptors and mappings of the file that closing left behind

It only measures; test_want_matrix.py judges.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

import aiommap
from aiommap import PAGE_SIZE as PAGE
from tests.support.loops import run_on

SIZE = 16 * PAGE
OLD, NEW = b"o" * 8, b"n" * 8
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def no_descriptor(path: Path) -> Callable[[], None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def no_thread(path: Path) -> Callable[[], None]:
    threading.stack_size(1 << 46)  # more than the address space has room for
    return lambda: threading.stack_size(0) and None


def mapping_limit(path: Path) -> Callable[[], None]:
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    length = 2 * most * PAGE
    start = LIBC.mmap(None, length, 0, 0x4022, -1, 0)  # PRIVATE | ANONYMOUS | NORESERVE
    at = start
    while at < start + length and LIBC.mprotect(at, PAGE, 1) == 0:
        at += 2 * PAGE
    return lambda: LIBC.munmap(start, length) and None


def renamed(path: Path) -> Callable[[], None]:
    path.rename(path.with_suffix(".1"))
    return lambda: None


def frozen(path: Path) -> Callable[[], None]:
    subprocess.run(["fsfreeze", "-f", path.parent], check=True)
    return lambda: subprocess.run(["fsfreeze", "-u", path.parent], capture_output=True) and None


def copied_up(path: Path) -> Callable[[], None]:
    with open(path, "r+b") as file:
        file.write(OLD)
    return lambda: None


class NoImports:
    """Refuses imports, as in a chroot, or if the interpreter's files are no longer readable."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        raise ModuleNotFoundError(f"no import of {name}")


def no_import(path: Path) -> Callable[[], None]:
    imports: Any = NoImports()
    sys.meta_path.insert(0, imports)
    return lambda: sys.meta_path.remove(imports)


WANTS = {
    f.__name__: f
    for f in (no_descriptor, no_thread, no_import, mapping_limit, renamed, frozen, copied_up)
}


async def drained(iterator: Any) -> bytes:
    return b"".join([piece async for piece in iterator])


async def locked(f: aiommap.MappedFile) -> bytes:
    async with f.locked(0, PAGE):
        return await f.read(0, 8)


async def filled(f: aiommap.MappedFile) -> bytes:
    buffer = bytearray(8)
    await f.read_into(0, buffer)
    return bytes(buffer)


async def file_locked(f: aiommap.MappedFile) -> None:
    async with f.file_lock(0, 8, timeout=1):
        pass


async def watched(f: aiommap.MappedFile) -> None:
    async with f.watch():
        pass


async def written(f: aiommap.MappedFile) -> None:
    await (await f.write(PAGE, NEW)).wait_durable()


async def followed(f: aiommap.MappedFile) -> bytes:
    async with aiommap.follow(f.path) as live:
        return await live.current.read_exact(0, 8)


async def loaded(f: aiommap.MappedFile) -> bytes:
    return f.atomic_u64(0).load().to_bytes(8, sys.byteorder)


async def waited(f: aiommap.MappedFile) -> None:
    await f.atomic_u32(0).wait(0, timeout=1)


async def stored(f: aiommap.MappedFile) -> None:
    word = f.atomic_u64(PAGE)
    word.store(1)
    assert word.fetch_add(1) == 1
    assert word.compare_exchange(2, 3) == (True, 2)


async def notified(f: aiommap.MappedFile) -> None:
    word = f.atomic_u32(PAGE)
    async with anyio.create_task_group() as group:
        group.start_soon(word.wait, word.load())
        await anyio.sleep(0)
        word.store(word.load() + 1)
        word.notify()


async def allocated(f: aiommap.MappedFile) -> bytes:
    allocator = f.allocator(start=2 * PAGE)
    piece = allocator.allocate(8)
    await f.write_range(piece, OLD)
    read = await f.read_range(piece)
    allocator.free(piece)
    return read


async def locked_across(f: aiommap.MappedFile) -> None:
    async with aiommap.AsyncLock(f, 4 * PAGE):
        pass


#: A result that is bytes has to begin with OLD.
READS: dict[str, Callable[[aiommap.MappedFile], Any]] = {
    "read": lambda f: f.read(0, 8),
    "read_whole": lambda f: f.read(0, SIZE),
    "read_into": filled,
    "read_many": lambda f: f.read_many([(0, 8), (PAGE, 8)]),
    "chunks": lambda f: drained(f.chunks(3 * PAGE)),
    "view_read": lambda f: f.view(0, PAGE).read(0, 8),
    "prewarm": lambda f: f.prewarm(),
    "residency": lambda f: f.residency(),
    "advise": lambda f: f.advise(aiommap.Advice.WILL_NEED),
    "locked": locked,
    "refresh": lambda f: f.refresh(),
    "watch": watched,
    "huge_page_bytes": lambda f: f.huge_page_bytes(),
    "follow": followed,
    "atomic_load": loaded,
    "word_wait": waited,
    "reopen": lambda f: f.reopen(),
}
WRITES: dict[str, Callable[[aiommap.MappedFile], Any]] = {
    "write": lambda f: f.write(PAGE, NEW),
    "write_long": lambda f: f.write(PAGE, NEW * (PAGE // 4)),
    "write_many": lambda f: f.write_many([(PAGE, NEW), (3 * PAGE, NEW)]),
    "write_durably": written,
    "flush": lambda f: f.flush(),
    "start_writeback": lambda f: f.start_writeback(),
    "prewarm_write": lambda f: f.prewarm(write=True),
    "punch_hole": lambda f: f.punch_hole(8 * PAGE, PAGE),
    "shrink": lambda f: f.resize(SIZE - PAGE),
    "grow": lambda f: f.resize(SIZE + PAGE),
    "outgrow": lambda f: f.resize(8 * SIZE),
    "file_lock": file_locked,
    "atomic_stores": stored,
    "word_notify": notified,
    "allocator": allocated,
    "async_lock": locked_across,
}


#: An atomic store happens in the calling thread, so the loop would wait for the thaw.
#: A thread that Python starts at the limit may find no mapping for its first frame.
IMPOSSIBLE = {("frozen", "atomic_stores"), ("frozen", "word_notify"), ("mapping_limit", "follow")}


def held(path: Path) -> list[str]:
    gc.collect()
    with open("/proc/self/maps") as maps:
        found = [line.split()[-1] for line in maps if str(path) in line]
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(str(path)):
            found.append(target)
    return found


async def works(f: aiommap.MappedFile, mode: str) -> str | None:
    """Use the file after the want, and close it; return what went wrong."""
    try:
        with anyio.fail_after(100):
            if (await f.read(0, SIZE // 2))[:8] != OLD:
                return "read other bytes"
            if mode != "r":
                await f.write(0, OLD)
                await f.flush()
                await f.resize(SIZE)
                if os.fstat(f._mapping.fd).st_size != f.size:
                    return "the sizes differ"
            await f.aclose()
    except Exception as error:
        return repr(error)
    return None


async def done(f: aiommap.MappedFile, name: str, relieve: Callable[[], None]) -> Any:
    return await (READS | WRITES)[name](f)


async def meanwhile(f: aiommap.MappedFile, name: str, relieve: Callable[[], None]) -> Any:
    """Check that the loop runs and can read the file before the want is over."""
    async with anyio.create_task_group() as group:
        group.start_soon(WRITES[name], f)
        for _ in range(20):
            await anyio.sleep(0.001)
        assert (await f.read(0, 8)) == OLD
        relieve()


async def run(folder: Path, want: str, name: str) -> dict[str, object]:
    path = folder / name
    mode = "r" if want == "copied_up" else "r+"
    if mode != "r":
        path.write_bytes(OLD * (SIZE // 8))
    waits = want == "frozen" and name in WRITES
    f = await aiommap.open(path, mode, inline_writes=not waits)
    relieve = WANTS[want](path)
    error = None
    try:
        with anyio.fail_after(100):
            result = await (meanwhile if waits else done)(f, name, relieve)
        if isinstance(result, list):
            result = result[0]
        if isinstance(result, bytes) and result[:8] != OLD:
            error = RuntimeError(f"read {result[:8]!r}")
    except Exception as raised:
        error = raised
    finally:
        relieve()
    after = await works(f, mode)
    return {
        "verb": name,
        "error": error and f"{type(error).__name__}: {error}",
        "named": error is None or str(path) in str(error),
        "after": after,
        "left": held(path),
    }


async def main(folder: Path, want: str) -> None:
    for name in READS if want == "copied_up" else READS | WRITES:
        if (want, name) in IMPOSSIBLE:
            continue
        print(json.dumps(await run(folder, want, name)), flush=True)


if __name__ == "__main__":
    run_on(sys.argv[3], main, Path(sys.argv[1]), sys.argv[2])
