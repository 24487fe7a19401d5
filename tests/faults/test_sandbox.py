"""System calls that a sandbox or an old kernel refuses: the library uses others in their place.

The refusals are real: a seccomp filter makes one system call fail in a process of its own.
Filters of containers do the same (older ones with EPERM, others with ENOSYS), and so do emulated
kernels.
"""

from __future__ import annotations

import errno
import platform

import pytest

from tests.support.fork_server import run_code

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no numbers of system calls known"
)

#: The system calls that the library can replace, or that only one verb needs: the numbers on x86-64
#: and on arm64, and the verbs that raise UnsupportedError without the call.
CALLS = {
    "cachestat": (451, 451, ""),
    "copy_file_range": (326, 285, ""),
    "fadvise64": (221, 223, ""),
    "fallocate": (285, 47, "punch_hole"),
    "fdatasync": (75, 83, ""),
    "fstatfs": (138, 44, ""),
    "futex_waitv": (449, 449, "wait"),
    "getrlimit": (97, 163, ""),
    "inotify_add_watch": (254, 27, ""),
    "inotify_init1": (294, 26, ""),
    "madvise": (28, 233, "advise"),
    "memfd_create": (319, 279, ""),
    "mincore": (27, 232, "residency"),
    "mlock2": (325, 284, ""),
    "msync": (26, 227, ""),
    "preadv2": (327, 286, ""),
    "prlimit64": (302, 261, ""),
    "pwritev": (296, 70, ""),
    "pwritev2": (328, 287, ""),
    "statfs": (137, 43, ""),
    "statx": (332, 291, ""),
    "sync_file_range": (277, 84, "start_writeback"),
}
#: Errors of emulated kernels other than ENOSYS.
EMULATED = [
    ("preadv2", errno.EOPNOTSUPP),
    ("preadv2", errno.EINVAL),
    ("pwritev2", errno.EOPNOTSUPP),
    ("fallocate", errno.EOPNOTSUPP),
    ("madvise", errno.EINVAL),
]

REFUSE = """
import ctypes, os, struct

def refuse(number, refusal):
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50000 | refusal)]
    steps.append((6, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    head = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    filter = ctypes.create_string_buffer(head)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0       # NO_NEW_PRIVS
    # SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_TSYNC: in all threads of the process.
    seccomp = 317 if os.uname().machine == "x86_64" else 277
    assert libc.syscall(seccomp, 1, 1, filter) == 0
"""

SCRIPT = (
    REFUSE
    + """
import os, sys, traceback, warnings
import anyio, aiommap
from aiommap import PAGE_SIZE as PAGE

folder, number, refusal = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
path = os.path.join(folder, "file")
unsupported = []

async def attempt(name, verb):
    try:
        return await verb()
    except aiommap.UnsupportedError as error:
        assert path in str(error), error
        unsupported.append(name)
    except Exception:
        print(name)
        traceback.print_exc(file=sys.stdout)

async def pin(f):
    async with f.locked(0, PAGE):
        assert await f.read(0, 5) == b"small"

async def grow(f):
    with f.view(growable=True) as view:
        view.memory[96 * PAGE] = 7
        assert f.size > 96 * PAGE
        await f.flush()
    assert await f.read(96 * PAGE, 1) == bytes([7])

async def wait(f):
    word = f.atomic_u32(8 * PAGE)
    try:
        await word.wait(word.load(), timeout=0.01)
    except TimeoutError:
        pass

async def follow():
    async with aiommap.follow(path) as live:
        assert await live.current.read_exact(0, 5) == b"small"

async def watch(f):
    with anyio.fail_after(100):
        async with f.watch(poll_interval=0.05) as changes:
            os.utime(path)
            async for change in changes:
                return

async def lock(f):
    async with f.file_lock(0, PAGE):
        pass

async def snapshot():
    async with aiommap.Snapshot.open(path) as snapshot:
        assert await snapshot.read_exact(0, 5) == b"small"

async def durable():
    always = aiommap.FlushPolicy.always()
    async with aiommap.open(path + "2", "x+", size=64 * PAGE, sparse=True, flush=always) as f:
        assert (await f.write(3, b"d" * 9 * PAGE)).durable
        assert await f.read(3, 9 * PAGE) == b"d" * 9 * PAGE

async def main():
    refuse(number, refusal)
    f = await attempt("open", lambda: aiommap.open(path, "w+", size=64 * PAGE, capacity=512 * PAGE))
    await attempt("write", lambda: f.write(0, b"small"))
    await attempt("write large", lambda: f.write(PAGE, b"l" * 40 * PAGE))
    await attempt("write_many", lambda: f.write_many([(50 * PAGE, b"a"), (51 * PAGE, b"b" * PAGE)]))
    await attempt("flush", f.flush)
    await f.write(5, b"x"); await f.write(60 * PAGE, b"y")
    await attempt("flush_range", lambda: f.flush_range(0, PAGE))
    await attempt("start_writeback", f.start_writeback)
    assert await attempt("prewarm", f.prewarm) == 64 * PAGE
    await attempt("prewarm write", lambda: f.prewarm(0, PAGE, write=True))
    await attempt("residency", f.residency)
    await attempt("advise", lambda: f.advise(aiommap.Advice.RANDOM))
    await attempt("locked", lambda: pin(f))
    await attempt("punch_hole", lambda: f.punch_hole(PAGE, PAGE))
    await attempt("resize", lambda: f.resize(100 * PAGE))
    await attempt("resize", lambda: f.resize(64 * PAGE))
    await attempt("ensure", lambda: f.ensure(70 * PAGE))
    await attempt("grow", lambda: grow(f))
    f.atomic_u64(8).fetch_add(1)
    await attempt("wait", lambda: wait(f))
    await attempt("file_lock", lambda: lock(f))
    await attempt("watch", lambda: watch(f))
    await attempt("follow", follow)
    await attempt("snapshot", snapshot)
    await attempt("durable", durable)
    await attempt("aclose", f.aclose)
    async with aiommap.open(path, prewarm=True) as f:
        found = await f.read(0, f.size)
    assert found[:6] == b"smallx" and found[50 * PAGE : 50 * PAGE + 1] == b"a", found[:10]
    print("unsupported:", *sorted(unsupported))

anyio.run(main)
"""
)


def number_of(call):
    return CALLS[call][0 if platform.machine() == "x86_64" else 1]


REFUSALS = [
    *(pytest.param(call, errno.EPERM, marks=pytest.mark.slow) for call in CALLS),
    *((call, errno.ENOSYS) for call in CALLS),
]


@pytest.mark.parametrize(
    ("call", "refusal"),
    [*REFUSALS, *EMULATED],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else value,
)
def test_verbs_without_a_system_call(tmp_path, call, refusal):
    done = run_code(SCRIPT, tmp_path, number_of(call), refusal)
    expected = ["unsupported:", *CALLS[call][2].split()]
    assert done.stdout.split() == expected, done.stdout + done.stderr


SEALED = """
import ctypes, errno, fcntl, os, subprocess, sys
import anyio, aiommap
from aiommap import PAGE_SIZE as PAGE

path, FUTURE_WRITE, GROW, SHRINK = sys.argv[1], 0x10, 0x4, 0x2

async def refused(verb, name):
    try:
        await verb
    except PermissionError as error:
        assert error.filename in (name, None), error
    else:
        raise AssertionError("not refused")

async def main():
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 64 * PAGE)
    async with aiommap.open(f"/proc/self/fd/{fd}", "r+", capacity=128 * PAGE) as f:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FUTURE_WRITE | GROW | SHRINK)
        await f.write(PAGE, b"x" * 40 * PAGE)  # through the mapping, which is older than the seal
        assert await f.read(PAGE, 40 * PAGE) == b"x" * 40 * PAGE
        await refused(f.resize(100 * PAGE), f.path)
        await refused(f.punch_hole(0, PAGE), f.path)
    async with aiommap.open(path, "w+", size=64 * PAGE) as f:
        await f.punch_hole(0, PAGE)  # in another file it still works
        if subprocess.run(["chattr", "+i", path], capture_output=True).returncode == 0:
            try:
                await refused(f.punch_hole(PAGE, PAGE), f.path)
            finally:
                subprocess.run(["chattr", "-i", path], check=True)
        await f.punch_hole(PAGE, PAGE)
    print("ok")

anyio.run(main)
"""


def test_eperm_of_a_file_is_not_a_sandbox(tmp_path):
    done = run_code(SEALED, tmp_path / "file")
    assert done.stdout == "ok\n", done.stdout + done.stderr


REFUSED_LATER = (
    REFUSE
    + """
import os, sys
import anyio, aiommap
from aiommap import PAGE_SIZE as PAGE

path, number = sys.argv[1], int(sys.argv[2])

async def main():
    async with aiommap.open(path, "w+", size=64 * PAGE) as f:
        await f.prewarm()
        await f.write(0, b"data")
        await f.flush()
        refuse(number, 1)
        assert await f.prewarm() == 64 * PAGE
        await f.write(0, b"more")
        await f.write(20 * PAGE, b"m" * 30 * PAGE)
        await f.flush()
        assert len(await f.read(0, 40 * PAGE)) == 40 * PAGE
    print("ok")

anyio.run(main)
"""
)


@pytest.mark.parametrize("call", ["mincore", "statx", "madvise", "fdatasync", "pwritev"])
def test_call_refused_while_a_file_is_open(tmp_path, call):
    done = run_code(REFUSED_LATER, tmp_path / "file", number_of(call))
    assert done.stdout == "ok\n", done.stdout + done.stderr


QUOTA = (
    REFUSE
    + """
import errno, os, sys
import anyio, aiommap
from aiommap import PAGE_SIZE as PAGE

path, number = sys.argv[1], int(sys.argv[2])

async def main():
    async with aiommap.open(path, "w+", size=512 * PAGE, sparse=True) as f:
        refuse(number, errno.EDQUOT)
        for write in (
            lambda: f.write(PAGE, b"q" * 20 * PAGE),
            lambda: f.write_many([(100 * PAGE, b"q" * 10 * PAGE)]),
        ):
            try:
                await write()
            except OSError as error:
                assert (type(error), error.errno, error.filename) == (OSError, errno.EDQUOT, path)
            else:
                raise AssertionError("not refused")
        assert not any(await f.read(0, f.size))
    print("ok")

anyio.run(main)
"""
)


@pytest.mark.parametrize("call", ["pwritev", "fallocate"])
def test_quota_that_is_used_up(tmp_path, call):
    """A filter returns EDQUOT, as a file system with quotas would."""
    done = run_code(QUOTA, tmp_path / "file", number_of(call))
    assert done.stdout == "ok\n", done.stdout + done.stderr


#: Calls that the library cannot replace, and a verb that fails without each.
LAST_RESORTS = {
    "fcntl": ((72, 25), "f.file_lock(0, 8, timeout=5).__aenter__()"),
    "munlock": ((150, 229), "lock_and_unlock(f)"),
}

REFUSED_IN_THE_END = (
    REFUSE
    + """
import anyio, aiommap, os, sys

async def lock_and_unlock(f):
    async with f.locked(0, 8):
        pass

async def main():
    async with aiommap.open(sys.argv[1], "r+") as f:
        refuse(int(sys.argv[2]), 1)
        try:
            await eval(sys.argv[3])
        except PermissionError as error:
            assert sys.argv[1] in str(error), error
            print("told")

anyio.run(main)
"""
)


@pytest.mark.parametrize("call", LAST_RESORTS)
def test_refused_for_good_names_the_file(tmp_path, call):
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    numbers, verb = LAST_RESORTS[call]
    number = numbers[platform.machine() == "aarch64"]
    done = run_code(REFUSED_IN_THE_END, path, number, verb)
    assert done.stdout == "told\n", done.stderr
