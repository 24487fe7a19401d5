"""A cache never serves bytes that a power cut left wrong: no block is believed before its sum (R3).

Readers fetch more into a cache on the recording file system than it has room for. The cache syncs
nothing, so a cut may leave any sector of any file as it was at any moment before, and may keep or
lose any name. After each cut the test reads every object through what is left, in another boot of
the machine, and compares every byte.
"""

from __future__ import annotations

import random

import pytest

from tests.powercut.cache_workload import BLOCKS, record_readers, recover_each
from tests.powercut.mount import missing
from tests.powercut.replay import mostly_survives
from tests.support.internals import cache_folder
from tests.support.remote import BLOCK

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(missing() is not None, reason=f"no power cuts here: {missing()}"),
]

CUTS, MORE_CUTS = 24, 300
THIS_BOOT = cache_folder.boot_id()
#: Room for about half of all blocks.
ROOM = 2 * BLOCKS * BLOCK


async def outcomes_of(log, folder, rng, cuts, **options):
    """Read what cuts leave at random moments and at the end, whether anything or most survives."""
    found = []
    for choose in (rng.randrange, mostly_survives(rng, 0.97)):
        positions = [*rng.choices(range(len(log)), k=cuts // 2 - 1), len(log)]
        found += await recover_each(log, positions, folder, choose, **options)
    return found


@pytest.mark.parametrize("cuts", [CUTS, pytest.param(MORE_CUTS, marks=pytest.mark.slow)])
async def test_power_cuts_leave_no_wrong_bytes(mount, cut_folder, cuts):
    rng = random.Random(cuts)
    log = await record_readers(mount, rng, ROOM)
    outcomes = await outcomes_of(log, cut_folder, rng, cuts)
    assert [each for each in outcomes if each.fault] == []
    # Blocks were kept and blocks were torn, so it is no chance that only the good ones are served.
    assert sum(each.kept for each in outcomes) > 2 * cuts
    assert sum(each.bad for each in outcomes) > cuts


@pytest.mark.slow
async def test_in_the_boot_of_the_cut_wrong_bytes_would_be_served(mount, cut_folder):
    """The test above can fail: without the distrust of another boot it would."""
    rng = random.Random(5)
    log = await record_readers(mount, rng, ROOM)
    outcomes = await outcomes_of(log, cut_folder, rng, CUTS, boot=THIS_BOOT)
    assert any("wrong" in (each.fault or "") for each in outcomes)
