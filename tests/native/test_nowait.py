"""NOWAIT reads where the kernel, a sandbox or the file system refuses them.

The refusals are real: a seccomp filter makes preadv2(2) fail in a process of its own.
"""

from __future__ import annotations

import errno
import os
import platform
from types import SimpleNamespace

import pytest

from tests.support.fork_server import run_code
from tests.support.internals import nowait_works

PREADV2 = {"x86_64": 327, "aarch64": 286}

SCRIPT = """
import anyio, ctypes, struct, sys, aiommap
path, number, refusal = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def refuse():
    def op(code, yes, no, k):
        return struct.pack("HBBI", code, yes, no, k)
    program = (
        op(0x20, 0, 0, 0)                      # load the number of the system call
        + op(0x15, 0, 1, number)               # preadv2?
        + op(0x06, 0, 0, 0x00050000 | refusal) # fail with the errno
        + op(0x06, 0, 0, 0x7FFF0000)           # allow
    )
    buffer = ctypes.create_string_buffer(program)
    filter = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0                                   # NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.create_string_buffer(filter), 0, 0) == 0  # SECCOMP

async def main():
    async with aiommap.open(path) as f:
        await f.prewarm()
        assert await f.read(0, 4) == b"data"
        assert f._mapping.nowait
        inline = f.statistics().inline_reads
        refuse()
        assert await f.read(0, 4) == b"data"
        assert not f._mapping.nowait
        assert await f.read(1, 3) == b"ata"
        found = f.statistics()
        assert found.inline_reads == inline, found
        assert found.offloaded_reads >= 2, found
        try:
            f.read_nowait(0, 4)
        except anyio.WouldBlock:
            print("ok")

anyio.run(main)
"""


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_nowait_refused_goes_to_a_worker(tmp_path, refusal):
    number = PREADV2.get(platform.machine())
    if number is None:
        pytest.skip(f"no system call numbers for {platform.machine()}")
    path = tmp_path / "file"
    path.write_bytes(b"data" * 5000)
    done = run_code(SCRIPT, path, number, refusal)
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.parametrize(
    ("system", "release", "works"),
    [
        ("Linux", "6.18.44-fc", True),
        ("Linux", "5.8.0", True),
        ("Linux", "5.9.16-200.fc33", False),
        ("Linux", "5.10.0-9-amd64", False),
        ("Linux", "5.11.0", True),
        ("Darwin", "23.1.0", False),
    ],
)
def test_nowait_on_untrusted_kernels(system, release, works):
    assert nowait_works(SimpleNamespace(sysname=system, release=release)) is works


@pytest.mark.anyio
async def test_nowait_on_tmpfs_is_inline():
    import tempfile

    import aiommap

    if not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(b"shared memory" * 1000)
        file.flush()
        async with aiommap.open(file.name) as f:
            assert f.read_nowait(0, 13) == b"shared memory"
            assert len(f.read_nowait(0, 13000)) == 13000
            assert f.statistics().inline_reads == 2
            assert await f.read(0, 13) == b"shared memory"
            assert len(await f.read(0, 13000)) == 13000
