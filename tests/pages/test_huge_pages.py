"""The kernel's report on huge pages: parsed from a sample, and read on a real mount."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import aiommap
from tests.support.internals import huge_pages

MIB = 1 << 20

SMAPS = """\
7f14b1e00000-7f14b2000000 rw-s 00000000 00:27 2                          /a/file
AnonHugePages:      2048 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:      2048 kB
7f14b2000000-7f14b3000000 rw-s 00000000 00:27 2                          /a/file with (7f-8f )
Size:              16384 kB
AnonHugePages:      4096 kB
ShmemPmdMapped:     6144 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:     9999 kB
VmFlags: rd wr sh mr mw me ms nr hg
7f14b3000000-7f14b4000000 rw-s 00000000 00:27 2                          /a/file
FilePmdMapped:      8192 kB
7f14b4000000-7f14b4001000 rw-s 00000000 00:27 2                          /a/file
FilePmdMapped:         4 kB
"""


def test_smaps_counts_mappings_within():
    lines = SMAPS.splitlines()
    found = huge_pages.huge_bytes(lines, 0x7F14B2000000, 0x7F14B4000000)
    assert found == (4096 + 6144 + 8192) * 1024
    assert huge_pages.huge_bytes(lines, 0, 0) == 0
    assert huge_pages.huge_bytes([], 0, 1 << 48) == 0


@pytest.fixture(params=["always", "advise"])
def huge_mount(tmp_path, request):
    """A tmpfs that gives huge pages to every file, or to those that ask for them."""
    place = tmp_path / "mount"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"huge={request.param},size=64m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs with huge pages can be mounted")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.anyio
async def test_statistics_tell_what_was_obtained(huge_mount):
    path = huge_mount / "file"
    async with aiommap.open(path, "x+", size=16 * MIB, huge_pages=True, sparse=True) as f:
        assert f.statistics().huge_page_bytes == 0
        await f.prewarm(write=True)
        assert await f.huge_page_bytes() == 16 * MIB
    async with aiommap.open(path, huge_pages=True, prewarm=True) as f:
        assert f.statistics().huge_page_bytes == 16 * MIB


@pytest.mark.anyio
async def test_statistics_claim_only_what_was_counted(path):
    async with aiommap.open(path) as f:
        assert f.statistics().huge_page_bytes is None
        assert await f.huge_page_bytes() == 0  # smaller than any huge page
        assert f.statistics().huge_page_bytes == 0


@pytest.mark.anyio
async def test_count_of_an_empty_file(tmp_path):
    async with aiommap.open(tmp_path / "empty", "w+", size=0) as f:
        assert await f.huge_page_bytes() == 0


@pytest.mark.anyio
async def test_count_where_the_kernel_does_not_tell(path, monkeypatch):
    monkeypatch.setattr(huge_pages, "_SMAPS", str(Path("/proc/self/no-smaps")))
    async with aiommap.open(path, huge_pages=True) as f:
        assert f.statistics().huge_page_bytes is None
        with pytest.raises(aiommap.UnsupportedError, match="/proc, which is not there") as caught:
            await f.huge_page_bytes()
    assert str(path) in str(caught.value)
    assert "no-smaps" not in str(caught.value)  # it names the user's file, not one of ours
