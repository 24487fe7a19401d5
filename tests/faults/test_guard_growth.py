"""Growth that fails: a full disk, a file that others cut short, a file that was closed."""

from __future__ import annotations

import textwrap

import pytest

from tests.support.disks import disk_with
from tests.support.scripts import expect_alive


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def backend(request):
    return request.param


FRAME = """
async def main():
    name = os.path.join(path, "grown")
{body}
    print("alive")

run(main)
"""


def expect_growth(body, folder, backend="asyncio"):
    """Run the body of a script's ``main``, in which ``name`` is the path of the file."""
    expect_alive(FRAME.format(body=textwrap.indent(textwrap.dedent(body), "    ")), folder, backend)


FULL = """
f = await aiommap.open(name, "w+", size=0, capacity=1 << 30)
view = f.view(growable=True)
memory = view.memory
at = 0
while f._mapping.first_bad is None:
    memory[at : at + PAGE] = b"x" * PAGE
    at += PAGE
lost = at - PAGE
assert lost > 256 << 10, lost  # all the room was used, down to the last page
assert f.size == lost == os.stat(name).st_size
assert memory[lost] == ord("x")  # a page of zeros took the store
try:
    await f.flush()
except aiommap.MappingFaultError as error:
    assert (error.errno, error.offset, error.poisoned) == (errno.ENOSPC, lost, True), error
    assert "the disk has no room for" in str(error), error
await expect_poisoned(
    lost, lambda: f.read(0, 1), lambda: f.write(0, b"x"), f.flush,
    lambda: f.ensure(0), lambda: f.resize(0), f.aclose,
)
with open(name, "rb") as file:
    assert file.read() == b"x" * lost
memory[lost + 10 * PAGE] = 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full_tmpfs", "full_ext4"])
def test_growth_on_full_disk_fails_next_verb(tmp_path, fault, backend):
    with disk_with(fault, tmp_path) as folder:
        expect_growth(FULL, folder, backend)


LIMITED = """
import resource

limit = 256 * PAGE + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
f = await aiommap.open(name, "w+", size=0, capacity=1 << 30)
memory = f.view(growable=True).memory
for at in range(0, 256 * PAGE, PAGE):
    memory[at : at + PAGE] = b"x" * PAGE
await f.flush()
memory[limit - 50] = 1
assert f.size == 256 * PAGE == os.stat(name).st_size
try:
    await f.flush()
except aiommap.MappingFaultError as error:
    assert (error.errno, error.offset, error.poisoned) == (errno.EFBIG, f.size, True), error
    assert "RLIMIT_FSIZE" in str(error), error
await expect_poisoned(f.size, f.aclose)
with open(name, "rb") as file:
    assert file.read() == b"x" * (256 * PAGE)
"""


def test_growth_up_to_a_file_size_limit(tmp_path, backend):
    expect_growth(LIMITED, tmp_path, backend)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full_tmpfs", "full_ext4"])
def test_ensure_on_full_disk_changes_nothing(tmp_path, fault, backend):
    with disk_with(fault, tmp_path) as folder:
        expect_growth(
            """
            async with aiommap.open(name, "w+", size=0, capacity=1 << 30) as f:
                with f.view(growable=True) as view:
                    view.memory[0] = 1
                    size = f.size
                    try:
                        await f.ensure(1 << 29)
                    except OSError as error:
                        assert error.errno == errno.ENOSPC and error.filename == name, error
                    else:
                        raise AssertionError("no error")
                    assert f.size == os.stat(name).st_size == size
                    view.memory[size] = 2  # and it can still grow
                    assert f.size == os.stat(name).st_size > size
            assert f.statistics().faults == 0
            assert os.stat(name).st_size == size + PAGE
            """,
            folder,
            backend,
        )


def test_growth_does_not_restore_what_was_cut(tmp_path, backend):
    expect_growth(
        """
        f = await aiommap.open(name, "w+", size=0, capacity=1 << 30)
        view = f.view(growable=True)
        memory = view.memory
        memory[: 40 * PAGE] = b"x" * 40 * PAGE
        os.truncate(name, PAGE)
        assert memory[3 * PAGE] == 0
        assert os.stat(name).st_size == PAGE
        await expect_poisoned(3 * PAGE, f.flush, lambda: f.read(0, 1), f.aclose)
        assert os.stat(name).st_size == PAGE
        """,
        tmp_path,
        backend,
    )


def test_growth_store_does_not_hide_a_cut(tmp_path, backend):
    expect_growth(
        """
        f = await aiommap.open(name, "w+", size=4 * PAGE, capacity=1 << 30)
        await f.flush()
        memory = f.view(growable=True).memory
        receipt = await f.write(PAGE + 100, b"x")
        os.truncate(name, PAGE)
        memory[9 * PAGE] = 1
        assert os.stat(name).st_size == PAGE
        await expect_poisoned(
            9 * PAGE, receipt.wait_durable, f.flush, lambda: f.ensure(PAGE), f.aclose
        )
        assert not receipt.durable
        assert os.stat(name).st_size == PAGE
        """,
        tmp_path,
        backend,
    )


def test_growth_goes_on_at_refreshed_size(tmp_path, backend):
    expect_growth(
        """
        f = await aiommap.open(name, "w+", size=4 * PAGE, capacity=1 << 30)
        await f.flush()
        os.truncate(name, PAGE)
        await f.refresh()
        memory = f.view(growable=True).memory
        memory[2 * PAGE] = memory[9 * PAGE] = 1
        await f.flush()
        assert f.size == os.stat(name).st_size > 9 * PAGE
        assert f.statistics().faults == 0
        del memory
        await f.aclose()
        with open(name, "rb") as file:
            kept = file.read()
        assert (len(kept), kept[2 * PAGE], kept[9 * PAGE]) == (10 * PAGE, 1, 1)
        """,
        tmp_path,
        backend,
    )


def test_growth_of_a_view_without_its_file(tmp_path, backend):
    expect_growth(
        """
        async with aiommap.open(name, "w+", size=0, capacity=1 << 30) as f:
            view = f.view(growable=True)
            memory = view.memory
            memory[0] = 1
            await f.resize(1)
        # The next file gets the number of its descriptor.
        with open(os.path.join(path, "other"), "wb") as other:
            other.write(b"other")
            other.flush()
            memory[1 << 20] = 1
            memory[5 * PAGE] = 1
            assert os.fstat(other.fileno()).st_size == 5
        assert os.stat(name).st_size == 1
        assert f.statistics().faults == 0  # nothing of the file was lost
        """,
        tmp_path,
        backend,
    )


def test_fork_child_stores_during_growth(tmp_path):
    expect_growth(
        """
        import numpy as np

        warnings.simplefilter("ignore", DeprecationWarning)  # of threads and fork
        async with aiommap.open(name, "w+", size=0, capacity=1 << 32, sparse=True) as f:
            view = f.view(growable=True)
            array = np.frombuffer(view.memory, dtype="u1")
            stop = threading.Event()

            def store():
                # Always beyond the end, so that the thread is mostly in the handler.
                for at in range(0, 1 << 32, PAGE * 64):
                    array[at : at + PAGE * 2] = 1
                    if stop.is_set():
                        break

            thread = threading.Thread(target=store)
            thread.start()
            for i in range(30):
                child = os.fork()
                if not child:
                    array[(1 << 32) - PAGE] = 1
                    f._mapping.close()
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
            stop.set()
            thread.join()
            del array
            view.release()
            await f.resize(0)
        """,
        tmp_path,
    )
