"""SIGBUS handlers of others above ours, through which a fault has to pass, in a whole program."""

from __future__ import annotations

import pytest

from tests.support.scripts import expect_alive
from tests.support.shims import compile_shim

#: A handler like those of crash reporters: it blocks all signals, and calls the previous handler.
CHAIN = r"""
#include <signal.h>
static struct sigaction previous[8];
static int installed, calls;
static void on(int level, int number, siginfo_t *info, void *context)
{
    calls++;
    if (previous[level].sa_flags & SA_SIGINFO)
        previous[level].sa_sigaction(number, info, context);
    else
        signal(number, SIG_DFL);
}
#define ON(level) static void on_##level(int number, siginfo_t *info, void *context) \
    { on(level, number, info, context); }
ON(0) ON(1) ON(2) ON(3) ON(4) ON(5) ON(6) ON(7)
static void (*const handlers[])(int, siginfo_t *, void *) = {on_0, on_1, on_2, on_3,
                                                             on_4, on_5, on_6, on_7};
int chain_install(void)
{
    struct sigaction action = {.sa_sigaction = handlers[installed],
                               .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &previous[installed++]);
}
int chain_calls(void) { return calls; }
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Compile the handler that chains."""
    return compile_shim(tmp_path_factory.mktemp("chain"), CHAIN)


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def backend(request):
    return request.param


FRAME = """
lib = ctypes.CDLL({library!r})

def unblocked():
    return not signal.pthread_sigmask(signal.SIG_BLOCK, [])

async def lose(verb, kind):
    try:
        await verb()
    except kind:
        return
    raise AssertionError("it was not lost")

async def main():
    name = make()
    f = await aiommap.open(name, "r+", flush=aiommap.FlushPolicy.never())
{body}
    print("alive")

run(main)
"""


def expect_survival(library, body, folder, backend="asyncio"):
    """Run the body of a script's ``main``, where ``f`` is open and ``lib`` chains."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    expect_alive(FRAME.format(library=str(library), body=lines), folder, backend)


LOCKED = """
async with f.locked():
    f.read_nowait(0, 10)
    lib.chain_install()
    os.truncate(name, PAGE)
    for length in (10, 100, 3 * PAGE):
        try:
            f.read_nowait(2 * PAGE, length)
        except anyio.WouldBlock:
            assert unblocked()
    await lose(lambda: f.read(2 * PAGE, 100), aiommap.MappingFaultError)
assert lib.chain_calls() > 2
"""


def test_copy_below_a_chained_handler(tmp_path, chain, backend):
    expect_survival(chain, LOCKED, tmp_path, backend)


WORD = """
word = f.atomic_u64(8 * PAGE)
before = time.clock_gettime(6)  # CLOCK_MONOTONIC_COARSE: the handler is checked once per tick
while time.clock_gettime(6) == before:
    pass
word.load()
lib.chain_install()
os.truncate(name, PAGE)
for _ in range(3):
    try:
        word.load()
    except aiommap.MappingFaultError:
        assert unblocked()
"""


def test_word_below_a_chained_handler(tmp_path, chain):
    expect_survival(chain, WORD, tmp_path)


LEVELS = """
for _ in range(6):
    lib.chain_install()
    f.view(0, 1).release()  # puts ours on top, while it has levels
async with f.locked():
    os.truncate(name, PAGE)
    for _ in range(3):
        try:
            f.read_nowait(2 * PAGE, 100)
        except anyio.WouldBlock:
            assert unblocked()
    memory = f.view().memory
    assert memory[3 * PAGE] == 0 and unblocked()
"""


def test_handlers_installed_more_often(tmp_path, chain):
    expect_survival(chain, LEVELS, tmp_path)


def test_signals_interrupt_after_a_fault(tmp_path, chain):
    """A fault leaves SIGINT and SIGTERM unblocked in its thread."""
    expect_survival(
        chain,
        """
        word = f.atomic_u32(8 * PAGE)
        word.load()
        lib.chain_install()
        os.truncate(name, PAGE)
        try:
            word.load()
        except aiommap.MappingFaultError:
            pass
        caught = []
        signal.signal(signal.SIGTERM, lambda *_: caught.append("SIGTERM"))
        os.kill(os.getpid(), signal.SIGTERM)
        while not caught:
            time.sleep(0)
        """.replace("\n        ", "\n"),
        tmp_path,
    )
