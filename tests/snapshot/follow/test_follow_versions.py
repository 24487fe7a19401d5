"""Followed folders that are replaced as a whole: all values are always of one version."""

from __future__ import annotations

import os
import sys

import anyio
import pytest

from aiommap import follow_folder
from tests.support.config_map import ConfigMap, names_of
from tests.support.following import FolderErrors, load_json, mappings, until, until_value

pytestmark = pytest.mark.anyio


@pytest.fixture
def errors():
    return FolderErrors()


async def test_config_map_is_seen_in_one_version(tmp_path):
    mount = ConfigMap(tmp_path / "config")
    mount.turn({"a": "0", "b": "0"})
    async with follow_folder(mount.path, load=load_json) as live:
        assert dict(live.value) == {"a": 0, "b": 0}
        mount.turn({"a": "1", "c": "1"})
        await until_value(live, {"a": 1, "c": 1})
        mount.turn({"b": "2"})
        await until_value(live, {"b": 2})


async def test_config_map_with_a_bad_file(tmp_path, errors):
    mount = ConfigMap(tmp_path / "config")
    mount.turn({"a": "0", "b": "0"})
    async with follow_folder(mount.path, load=load_json, on_error=errors) as live:
        mount.turn({"a": "1", "b": "bad"})
        await errors.wait("b", ValueError)
        await until_value(live, {"a": 1, "b": 0})
        mount.turn({"a": "2", "b": "2"})
        await until_value(live, {"a": 2, "b": 2})


async def turn_under_readers(folder, live, turns):
    """Turn the link in another process; check all values seen, and return their versions."""
    seen, stop = set(), anyio.Event()

    async def read():
        newest = -1
        while not stop.is_set():
            values = live.value
            (number,) = {*values.values()}  # all are of one version
            assert [*values] == names_of(number)
            assert number >= newest
            newest = number
            seen.add(number)
            await anyio.sleep(0.001)

    code = f"from tests.support.config_map import storm; storm({str(folder)!r}, {turns})"
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(read)
        await anyio.run_process([sys.executable, "-c", code])
        await until_value(live, dict.fromkeys(names_of(turns), turns))
        stop.set()
    return seen


async def test_config_map_turned_quickly_is_never_mixed(tmp_path):
    folder = tmp_path / "config"
    ConfigMap(folder).turn(dict.fromkeys(names_of(0), "0"))
    async with follow_folder(folder, load=load_json) as live:
        seen = await turn_under_readers(folder, live, 100)
    assert 0 in seen


@pytest.mark.slow
async def test_config_map_turned_thousands_of_times(tmp_path):
    folder = tmp_path / "config"
    ConfigMap(folder).turn(dict.fromkeys(names_of(0), "0"))
    async with follow_folder(folder, load=load_json) as live:
        descriptors = len(os.listdir("/proc/self/fd"))
        seen = await turn_under_readers(folder, live, 3000)

        async def settled():
            held = mappings(tmp_path) + len(os.listdir("/proc/self/fd")) - descriptors
            return held <= 0

        await until(settled)
    assert len(seen) > 10


async def test_link_to_the_folder_is_turned(tmp_path):
    """As with releases: the link changes, and files in both folders have the same names."""

    def turn(number):
        made = tmp_path / f"release-{number}"
        made.mkdir()
        for name in "abc":
            (made / name).write_text(str(number))
        link = tmp_path / "link"
        link.symlink_to(made.name)
        link.rename(tmp_path / "current")

    turn(0)
    async with follow_folder(tmp_path / "current", load=load_json) as live:
        for number in range(1, 30):
            turn(number)
            values = {*live.value.values()}
            assert len(values) == 1
            if not number % 5:
                await until_value(live, dict.fromkeys("abc", number))
