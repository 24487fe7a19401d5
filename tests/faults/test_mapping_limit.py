"""A process that has as many mappings as the kernel allows."""

from __future__ import annotations

import pytest

from tests.support.scripts import expect_alive

with open("/proc/sys/vm/max_map_count") as found:
    LIMIT = int(found.read())

pytestmark = pytest.mark.skipif(LIMIT > 1 << 20, reason="the limit is too high to reach")

FULL = """
async def main():
    f = await aiommap.open(make(), "r+")
    memory, taken = f.view().memory, []
    await f.prewarm()
    try:
        while True:
            taken.append(mmap.mmap(-1, PAGE))
    except OSError:
        pass
    try:
        async with f.locked(3 * PAGE, PAGE):
            pass
    except OSError as error:
        assert not isinstance(error, aiommap.MappingFaultError), error
        assert error.errno == errno.ENOMEM and error.filename == f.path, error
        assert "vm.max_map_count" in str(error), error
    else:
        raise AssertionError("it was pinned")
    os.truncate(f.path, PAGE)
    assert sum(memory[2 * PAGE :: PAGE]) == 0
    assert memory[0] == ord("o")
    await expect_poisoned(2 * PAGE, lambda: f.read(0, 1), f.aclose)
    print("alive")

run(main)
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_lost_pages_at_the_limit_of_mappings(tmp_path, backend):
    expect_alive(FULL, tmp_path, backend)
