"""Helpers for tests of logs: making, reading and damaging them."""

from __future__ import annotations

import struct
from pathlib import Path

from aiommap import CorruptRecordError, FlushPolicy, Log
from tests.support.example_scripts import EXAMPLES, load
from tests.support.fork_server import run_code
from tests.support.internals import HEADER_BYTES, crc32c, frame_bytes, segment_name

read_log = load(EXAMPLES / "read_log.py")

SEGMENT = 64 << 10
ALWAYS = FlushPolicy.always()
#: The size of a record that is longer than any small one; a few of them fill a segment.
BIG = 9000


def pure_records(folder):
    """Read a log with the reader of the examples."""
    return list(read_log.read_log(Path(folder)))


def segment_path(folder, base=1):
    return Path(folder) / segment_name(base)


def segments(folder):
    return sorted(Path(folder).glob("*.log"))


async def contents(log, start=None):
    return [record.data async for record in log.read(start)]


async def up_to_damage(log):
    """Read up to the first damaged record; return the data, and its sequence or None."""
    found, records = [], log.read()
    while True:
        try:
            found.append((await anext(records)).data)
        except StopAsyncIteration:
            return found, None
        except CorruptRecordError as error:
            return found, error.sequence


async def reopened(folder, mode="a", **options):
    """Open a log, read all of it, and close it."""
    async with Log.open(folder, mode, segment_size=SEGMENT, **options) as log:
        return await contents(log)


async def make(folder, *data, flush=ALWAYS, **options):
    """Append records one by one, each in a commit of its own."""
    async with Log.open(folder, flush=flush, segment_size=SEGMENT, **options) as log:
        for each in data:
            await log.append(each)


def places(data, start=HEADER_BYTES):
    """Return where the frames of records begin, and where the last one ends."""
    found = [start]
    for each in data:
        found.append(found[-1] + frame_bytes(len(each)))
    return found


def flip(path, at, bit=0):
    """Flip one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def without_control(folder):
    (Path(folder) / "control").unlink()


def adopt_control(folder, *, boot=None):
    """Make the control file of a copied folder valid for the copy.

    With the id of another boot, readers believe only what was durable.
    """
    path = Path(folder) / "control"
    block = bytearray(path.read_bytes())
    found = path.stat()
    struct.pack_into("<QQ", block, 32, found.st_dev, found.st_ino)
    if boot is not None:
        block[48:64] = boot
    struct.pack_into("<I", block, 64, crc32c(bytes(block[:64])))
    path.write_bytes(block)


def bytes_read():
    """Return how many bytes this process has read, from the page cache or not."""
    with open("/proc/self/io") as counts:
        return int(counts.readline().split()[1])


#: Appends 40 records under a policy, over several segments, and prints which are durable.
WRITER = """
import os, sys, anyio, aiommap
folder, policy, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
async def main():
    flush = getattr(aiommap.FlushPolicy, policy)()
    async with aiommap.Log.open(folder, segment_size=65536, flush=flush) as log:
        os.write(1, b"%d\\n" % log.durable)
        for i in range(first, first + 40):
            receipt = await log.append(b"%d " % (log.last + 1) + bytes(3000))
            if policy == "always" or i % 5 == 0:
                await receipt.wait_durable()
            if receipt.durable:
                os.write(1, b"%d\\n" % receipt.sequence)
            if i == 30:
                await log.discard(log.last - 5)
anyio.run(main)
"""


def script(text, *arguments, check=True):
    """Run a script in another process."""
    done = run_code(text, *arguments)
    if check:
        assert done.returncode == 0, done.stderr
    return done
