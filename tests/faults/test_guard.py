"""Foreign loads and stores at pages that a file lost: the process survives them.

It does not survive a SIGBUS of a mapping that is not ours; faulthandler then makes its dump.
"""

from __future__ import annotations

import signal

import pytest

from tests.support.gates import expect_gated
from tests.support.scripts import expect_alive, run_script


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def backend(request):
    return request.param


LOST = """
import numpy as np

async def main():
    name = make()
    {before}
    f = await aiommap.open(name, "{mode}")
    {after}
    memory = f.view().memory
    array = np.frombuffer(memory, dtype="u1")
    os.truncate(name, 5 * PAGE)
    {late}
    assert array[7 * PAGE + 3] == 0 and array[PAGE] == ord("o")
    assert f.statistics().faults == 1
    await expect_poisoned(7 * PAGE, lambda: f.read(0, 1), f.flush, f.residency, f.aclose)
    assert f.closed
    await expect_poisoned(7 * PAGE, f.aclose)  # a later call reports no success either (I15)
    assert array[8 * PAGE] == 0  # after the close no verb can report it; it still does not kill
    print("alive")

run(main)
"""
NOTHING = {"before": "pass", "after": "pass", "late": "pass"}


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_lost_page_reads_zeros_and_poisons(tmp_path, mode, backend):
    assert expect_alive(LOST.format(mode=mode, **NOTHING), tmp_path, backend) == ""


def with_faulthandler(when, action="faulthandler.enable()"):
    # Development mode has it enabled from the start.
    return {**NOTHING, "before": "faulthandler.disable()"} | {when: action}


@pytest.mark.parametrize("when", ["before", "after"])
def test_fault_beside_faulthandler_no_dump(tmp_path, when):
    assert expect_alive(LOST.format(mode="r+", **with_faulthandler(when)), tmp_path) == ""


def test_fault_below_late_faulthandler(tmp_path):
    """Enabled after the memory was handed out, faulthandler is on top of our handler."""
    code = LOST.format(mode="r+", **with_faulthandler("late"))
    assert "Bus error" in expect_alive(code, tmp_path)


def test_fault_below_late_python_handler(tmp_path):
    """Python's handler passes nothing on, so the guard has to go on top of it."""
    action = "signal.signal(signal.SIGBUS, lambda *_: os._exit(1))"
    expect_alive(LOST.format(mode="r+", **{**NOTHING, "after": action}), tmp_path)


FOREIGN = """
async def main():
    name, other = make(), make("other")
    {before}
    f = await aiommap.open(name, "r+")
    {after}
    memory = f.view().memory
    await f.read(0, SIZE)
    with open(other, "r+b") as file:
        theirs = mmap.mmap(file.fileno(), SIZE)
    os.truncate(name, 0)
    os.truncate(other, 0)
    assert memory[PAGE] == 0
    print("ours", flush=True)
    theirs[0]

run(main)
"""


@pytest.mark.parametrize("when", ["never", "before", "after"])
def test_fault_in_foreign_mapping_kills(tmp_path, when, backend):
    done = run_script(FOREIGN.format(**with_faulthandler(when)), tmp_path, backend)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "ours\n")
    assert ("Fatal Python error: Bus error" in done.stderr) == (when != "never")
    # One dump, and no endless series. From Python 3.14 on a C stack follows, with its own title.
    assert done.stderr.count("Current thread 0x") == (when != "never")


def test_fault_in_mapping_that_replaced_ours(tmp_path):
    done = run_script(
        """
        async def main():
            name, other = make(), make("other")
            libc = ctypes.CDLL(None)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [
                ctypes.c_long]
            fixed_noreplace = 0x100000 | mmap.MAP_SHARED
            found = address = None
            while found is None or found != address:  # a thread may take the place meanwhile
                async with aiommap.open(name, "r+") as f:
                    address = f._mapping.address
                with open(other, "r+b") as file:
                    found = libc.mmap(address, SIZE, 3, fixed_noreplace, file.fileno(), 0)
            os.truncate(other, 0)
            async with aiommap.open(name, "r+"):
                print("there", flush=True)
                ctypes.string_at(address, 1)

        run(main)
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "there\n"), done.stderr


def test_faults_in_ten_mappings_and_threads(tmp_path, backend):
    expect_alive(
        """
        import numpy as np

        async def main():
            files = [await aiommap.open(make(f"file{i}"), "r+") for i in range(10)]
            arrays = [np.frombuffer(f.view().memory, dtype="u1") for f in files]
            for i, f in enumerate(files):
                os.truncate(f.path, (3 + i % 3) * PAGE)
            ready = threading.Barrier(20)

            def touch(seed):
                order = random.Random(seed)
                ready.wait()
                for _ in range(3000):
                    array = order.choice(arrays)
                    # NumPy releases the GIL for whole pages, so faults overlap in time.
                    at = order.randrange(16) * PAGE
                    if seed % 2:
                        array[at : at + PAGE].sum()
                    else:
                        array[at : at + PAGE] = 1

            threads = [threading.Thread(target=touch, args=(seed,)) for seed in range(20)]
            for thread in threads:
                thread.start()
            with anyio.CancelScope():
                while any(thread.is_alive() for thread in threads):
                    await anyio.sleep(0.001)
            for i, f in enumerate(files):
                first = f._mapping.first_bad
                assert first % PAGE == 0 and (3 + i % 3) * PAGE <= first < SIZE
                await expect_poisoned(first, lambda: f.read(0, 1), f.flush, f.aclose)
            print("alive")

        run(main)
        """,
        tmp_path,
        backend,
    )


def test_fault_in_more_holes_than_mappings(tmp_path):
    """Each replaced page is a mapping of its own, and the kernel has a limit on mappings."""
    with open("/proc/sys/vm/max_map_count") as limit:
        pages = 2 * int(limit.read()) + 100
    if pages > 1 << 20:
        pytest.skip(f"the limit is {pages // 2}, too many to try")
    expect_alive(
        f"""
        import numpy as np

        async def main():
            name = make(size=0)
            os.truncate(name, {pages} * PAGE)
            f = await aiommap.open(name, "r+", sparse=True)
            array = np.frombuffer(f.view().memory, dtype="u1")
            os.truncate(name, 0)
            for page in range(0, {pages}, 2):
                assert array[page * PAGE] == 0
            assert array.sum() == 0
            await expect_poisoned(0, f.flush, f.aclose)
            print("alive")

        run(main)
        """,
        tmp_path,
    )


BLOCKED = """
async def main():
    name = make()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGBUS})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            f = await aiommap.open(name, "r+")
    assert [w.category for w in warned] == [RuntimeWarning], warned
    assert "SIGBUS is blocked" in str(warned[0].message)
    view = f.view()
    memory = view.memory
    async with f.locked():
        os.truncate(name, PAGE)
        for verb in (
            lambda: f.read(PAGE, 1),
            lambda: f.read_into(PAGE, bytearray(PAGE)),
            lambda: f.read(0, SIZE),
            lambda: f.write(PAGE, b"x"),
            lambda: f.write(0, b"x" * SIZE),
            f.prewarm,
        ):
            try:
                await verb()
            except aiommap.MappingFaultError as error:
                assert not error.poisoned
            else:
                raise AssertionError("no error")
    assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    print("verbs", flush=True)
    memory[2 * PAGE]

run(main)
"""


def test_fault_where_sigbus_is_blocked(tmp_path, backend):
    done = run_script(BLOCKED, tmp_path, backend)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "verbs\n"), done.stderr


def test_workers_have_sigbus_unblocked(tmp_path):
    expect_alive(
        """
        from tests.support.internals import native, run_in_thread
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGBUS})
        done, blocked = threading.Event(), []

        def job():
            blocked.append(native.sigbus_blocked())
            done.set()

        run_in_thread(job)
        done.wait()
        assert blocked == [False] and native.sigbus_blocked()
        print("alive")
        """,
        tmp_path,
    )


def test_background_flush_of_poisoned_file(tmp_path, backend):
    expect_alive(
        """
        async def main():
            name = make()
            f = await aiommap.open(name, "r+", flush=aiommap.FlushPolicy.every_interval(0.001))
            told, event = [], anyio.Event()
            f.on_error(lambda error: (told.append(error), event.set()))
            memory = f.view().memory
            os.truncate(name, PAGE)
            memory[3 * PAGE] = 1
            with anyio.fail_after(100):
                await event.wait()
            flushes = f.statistics().flushes
            await anyio.sleep(0.05)  # fifty intervals
            assert len(told) == 1, told
            assert isinstance(told[0], aiommap.FlushError), told
            assert f.statistics().flushes == flushes
            await expect_poisoned(3 * PAGE, f.flush, f.aclose)
            print("alive")

        run(main)
        """,
        tmp_path,
        backend,
    )


UNDER_A_VERB = """
from tests.support.internals import Workers

start, actions = Workers._start, []

def hooked(self, limiter, function, ended):
    def act():
        while actions:
            actions.pop()()
        return function()
    return start(self, limiter, act, ended)

Workers._start = hooked
Workers.flush_queue = lambda *_: None  # the next test is about the engine

async def main():
    name = make()
    f = await aiommap.open(name, "r+")
    memory = f.view().memory
    receipt = await f.write(0, b"new")

    def lose():
        os.truncate(name, 2 * PAGE)
        assert memory[4 * PAGE] == 0
        os.truncate(name, SIZE)

    actions.append(lose)
    await expect_poisoned(4 * PAGE, {verb})
    assert not actions and not receipt.durable
    if not f.closed:
        await expect_poisoned(4 * PAGE, {later} f.flush, f.aclose)
    print("alive")

run(main)
"""


@pytest.mark.parametrize(
    "verb",
    ["f.flush", "lambda: f.flush_range(0, SIZE)", "receipt.wait_durable", "f.aclose"],
)
def test_flush_during_a_lost_store_fails(tmp_path, verb):
    """The file has its size again when the flush ends, so only the poison shows the loss."""
    later = "receipt.wait_durable, lambda: f.flush_range(receipt),"
    expect_alive(UNDER_A_VERB.replace("{verb}", verb).replace("{later}", later), tmp_path)


UNDER_THE_ENGINE = """
async def main():
    name = make()
    f = await aiommap.open(name, "r+")
    memory = f.view().memory
    receipt = await f.write(0, b"new")
    arm("fdatasync")
    async with anyio.create_task_group() as group:
        group.start_soon(expect_poisoned, 4 * PAGE, {verb})
        assert await anyio.to_thread.run_sync(gate.gate_reached)
        os.truncate(name, 2 * PAGE)
        assert memory[4 * PAGE] == 0
        os.truncate(name, SIZE)
        gate.gate_open()
    assert not receipt.durable
    if not f.closed:
        await expect_poisoned(4 * PAGE, receipt.wait_durable, f.flush, f.aclose)

run(main)
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("verb", ["f.flush", "f.aclose"])
def test_commit_during_a_lost_store_fails(tmp_path, backend, verb):
    expect_gated(UNDER_THE_ENGINE.replace("{verb}", verb), tmp_path, backend)


def test_store_during_a_lost_page_fails(tmp_path):
    """In mode "c": in other modes stores to absent pages do not go through the mapping."""
    verb = "lambda: f.write(3 * PAGE, bytes(2 * SIZE))"  # too much for the loop thread
    code = UNDER_A_VERB.replace("{verb}", verb).replace("{later}", "").replace('"r+")', '"c")')
    larger = code.replace("make()", "make(size=4 * SIZE)").replace("name, SIZE)", "name, 4 * SIZE)")
    expect_alive(larger, tmp_path)


def test_shrink_under_live_views_never_faults(tmp_path, backend):
    expect_alive(
        """
        import numpy as np

        async def main():
            async with aiommap.open(make(), "r+") as f:
                memory = f.view().memory
                array = np.frombuffer(memory, dtype="u1")
                whole = array.sum()
                for pages in (12, 7, 3, 0):
                    await f.resize(pages * PAGE)
                    kept = array[: pages * PAGE]
                    assert array.sum() == kept.sum() == whole // 16 * pages
                    assert array[-1] == 0
                    array[-1] = 7  # into a page that belongs to no file
                await f.resize(SIZE)
                assert array.sum() == 0
                await f.flush()
                assert f.statistics().faults == 0
                del array, kept, memory
            print("alive")

        run(main)
        """,
        tmp_path,
        backend,
    )


def test_fork_child_survives_as_its_parent(tmp_path):
    expect_alive(
        """
        async def main():
            name = make()
            f = await aiommap.open(name, "r+")
            memory = f.view().memory
            os.truncate(name, PAGE)
            child = os.fork()
            if not child:
                os._exit(memory[2 * PAGE])
            assert os.waitpid(child, 0)[1] == 0
            assert f._mapping.first_bad is None  # the fault of the child does not poison the parent
            assert await f.read(0, 1) == b"o"
            await f.resize(PAGE)
            await f.aclose()
            print("alive")

        run(main)
        """,
        tmp_path,
    )
