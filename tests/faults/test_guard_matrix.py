"""Every fault with every access, on every loop; guard_matrix.py does the measuring.

There are three rules. The process survives. If an access read or stored other bytes than the file
has, it raised an error, or the mapping is poisoned. If the mapping is poisoned, every verb says so,
with the offset.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from aiommap import PAGE_SIZE as PAGE
from tests.support.disks import disk_with
from tests.support.strict import PYTHON

MATRIX = Path(__file__).with_name("guard_matrix.py")
BAD = 10 * PAGE

TRUNCATED = ("truncate_0", "truncate_mid", "truncate_earlier")
FAULTS = (*TRUNCATED, "hole", "full_tmpfs", "full_ext4", "eio")
LOADS = {"numpy_read", "memory_slice", "unpack_from"}
STORES = {"numpy_write", "memory_store", "pack_into"}
#: Our own loads and stores of words: if they cannot reach a page, only they raise an error.
WORDS = {"atomic_load", "atomic_store", "fetch_add"}
#: Calls in which the kernel loads or stores: if it cannot reach a page, the call fails.
CALLS = {"send": "OSError EFAULT", "recv_into": "OSError EFAULT"}

#: The foreign accesses that meet a missing page. On tmpfs even a load needs room for a page.
POISONING = {
    **dict.fromkeys((*TRUNCATED, "eio", "full_tmpfs"), LOADS | STORES),
    "full_ext4": STORES,
    "hole": set(),
}


@pytest.fixture
def folder(fault, tmp_path):
    with disk_with(fault, tmp_path) as folder:
        yield folder


@pytest.fixture
def results(folder, fault, backend):
    done = subprocess.run(
        [*PYTHON, MATRIX, folder, fault, backend],
        capture_output=True,
        text=True,
        timeout=150,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {results[-1:]}: {done.stderr}"
    return {result["access"]: result for result in results}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_access_survives_every_loss(results, fault):
    foreign = LOADS | STORES | set(CALLS)
    assert foreign < set(results)
    assert len(results) > 20
    poisoned = {name for name, result in results.items() if result["first_bad"] is not None}
    assert poisoned == POISONING[fault]
    for name, result in results.items():
        told = result["error"] is not None
        if name in poisoned:
            assert result["first_bad"] == BAD, result
            assert not told, result  # a load or store raises nothing: later verbs do
            zeros = fault == "full_tmpfs" and name in LOADS  # a hole reads as zeros in any case
            assert result["right"] == zeros, result
            # Every single verb raises, aclose too, and names the same offset.
            assert (result["silent"], result["offsets"]) == ([], [BAD]), result
        else:
            assert result["offsets"] == [], result
            assert told or result["right"], result
        if told and name in CALLS:
            assert result["error"] == CALLS[name], result
    if fault == "hole":
        assert [name for name, result in results.items() if result["error"]] == []
    else:
        lossy = WORDS if fault in (*TRUNCATED, "eio") else set()
        if fault in TRUNCATED:
            lossy = lossy | {"read", "read_into", "write", "write_many"}
        assert all(results[name]["error"].startswith("MappingFault") for name in lossy)
