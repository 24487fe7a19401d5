"""Reads that meet a truncation half-way: the kernel may read zeros in place of the lost bytes.

It looks at the size, then copies. A page that is cut off in between is copied as zeros, and the
call says that it read everything. That is rare: about once in 200,000 reads on a busy machine, of
a file that is cut all the time. So here strace(1) fakes the result of our look at the size after
the copy.
"""

from __future__ import annotations

import pytest

from tests.support.tracing import missing, run_traced

SCRIPT = """
import sys, anyio, aiommap

async def main():
    async with aiommap.open(sys.argv[1], **eval(sys.argv[2])) as f:
        if sys.argv[3] == "warm":
            await f.prewarm()
        print(await f.read(0, 100) == b"x" * 100)
        try:
            await f.read(50, int(sys.argv[4]))
        except aiommap.MappingFaultError as error:
            print("fault", error.copied)

anyio.run(main)
"""


@pytest.mark.parametrize("way", ["warm", "cold"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="shared"),
        pytest.param({"mode": "c"}, id="private", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("length", [100, 40_000], ids=["short", "long"])
def test_read_cut_off_while_copied_is_a_fault(tmp_path, options, way, length):
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 16 * 4096)
    fake = [
        "-o",
        tmp_path / "log",
        "-P",
        path,
        "-e",
        "trace=lseek",
        "-e",
        "inject=lseek:retval=100",
    ]
    done = run_traced(SCRIPT, path, repr(options), way, length, options=fake)
    assert done.stdout.splitlines() == ["True", "fault 50"], done.stderr
