"""Words that the kernel cannot wait for: their waiters get an error, and no others do."""

from __future__ import annotations

import errno

import pytest

from tests.support.fork_server import run_code
from tests.support.shims import compile_shim, preloaded

#: Refuses futex_waitv(2) with an errno: always, or if one of the words is expected to be 57005.
REFUSE = r"""
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
struct entry { uint64_t value, address; uint32_t flags, reserved; };
long syscall(long number, ...)
{
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    const struct entry *entries = (const struct entry *)a[0];
    for (long i = 0; number == 449 && i < a[1]; i++)
        if (entries[i].value == 57005 || getenv("REFUSE_ALL")) {
            errno = atoi(getenv("REFUSE_ERRNO"));
            return -1;
        }
    long (*next)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""

FRAME = """
import sys, anyio, aiommap
from tests.support.internals import futex

path, other_path, backend, number = sys.argv[1:]

def waiters():
    return sum(len(thread.waiters) for thread in futex._waiter_threads)

async def expect_refusal(word):
    try:
        await word.wait(57005, timeout=20)
    except aiommap.UnsupportedError as error:
        assert f"at 8 of {path}" in str(error) and error.errno == int(number), error
    else:
        raise AssertionError("it waited")

async def main():
    async with aiommap.open(path, "w+", size=4096) as f:
        bad = f.atomic_u32(8)
        bad.store(57005)
BODY
    print("alive")

backend, options = {"uvloop": ("asyncio", {"use_uvloop": True})}.get(backend, (backend, {}))
anyio.run(main, backend=backend, backend_options=options)
"""

ONE = """
        async with aiommap.open(other_path, "w+", size=4096) as other:
            word, beside = other.atomic_u32(0), f.atomic_u32(16)
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(word.wait, 0)
                group.start_soon(beside.wait, 0)
                while waiters() < 6:
                    await anyio.sleep(0.001)
                for _ in range(3):
                    await expect_refusal(bad)
                assert waiters() == 6
                for waited in (word, beside):
                    waited.store(1)
                    waited.notify(5)
"""

ALL = "        await expect_refusal(bad)"


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return compile_shim(tmp_path_factory.mktemp("shim"), REFUSE)


def expect_alive(shim, folder, body, backend, number, **variables):
    environment = preloaded(shim) | {"REFUSE_ERRNO": str(number)} | variables
    paths = [str(folder / name) for name in ("refused", "other")]
    script = FRAME.replace("BODY", body)
    done = run_code(script, *paths, backend, number, environment=environment)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("number", [errno.EFAULT, errno.ENOMEM])
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_refused_word_ends_no_other_wait(shim, tmp_path, backend, number):
    expect_alive(shim, tmp_path, ONE, backend, number)


def test_wait_that_the_kernel_lacks(shim, tmp_path):
    expect_alive(shim, tmp_path, ALL, "asyncio", errno.ENOSYS, REFUSE_ALL="1")
