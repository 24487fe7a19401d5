"""Followed folders: what is loaded from them, always as it was at one moment."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
from collections import Counter

import anyio
import anyio.to_thread
import numpy as np
import pytest

import aiommap
from aiommap import follow_folder
from tests.support.following import (
    FolderErrors,
    Gate,
    content,
    load_json,
    mappings,
    replace,
    until,
    until_value,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def errors():
    return FolderErrors()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    made.mkdir()
    for name in "ab":
        (made / f"{name}.json").write_text(f'"{name} 0"')
    return made


# What a folder holds.


async def test_folder_is_loaded(folder):
    (folder / ".hidden").write_text("0")
    (folder / "nested").mkdir()
    (folder / "nested" / "c.json").write_text("0")
    (folder / "link.json").symlink_to("a.json")
    (folder / "dangling.json").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    async with follow_folder(folder, load=load_json) as live:
        assert dict(live.value) == {"a.json": "a 0", "b.json": "b 0", "link.json": "a 0"}
        assert live.value is live.value
        assert (live.path, live.generation, live.ready) == (str(folder), 1, True)
        assert repr(live) == f"<LiveFolder {folder} generation 1>"
        with pytest.raises(TypeError):
            live.value["a.json"] = 1
    with pytest.raises(anyio.ClosedResourceError, match="not followed any more"):
        _ = live.value


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["a.json", "b.json"]),
        ("b*", ["b.json"]),
        ("[ab].js?n", ["a.json", "b.json"]),
        (".*", [".hidden"]),
        ("*.yaml", []),
    ],
)
async def test_pattern_says_which_names_count(folder, pattern, names):
    (folder / ".hidden").write_text("0")
    async with follow_folder(str(folder) + "/", pattern, load=load_json) as live:
        assert list(live.value) == names
        assert live.path == str(folder)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"pattern": "a/*"}, ValueError),
        ({"pattern": ""}, ValueError),
        ({"pattern": 1}, TypeError),
        ({"load": None}, TypeError),
        ({"on_error": 1}, TypeError),
        ({"required": 1}, TypeError),
    ],
)
async def test_arguments_that_cannot_be_meant(folder, arguments, kind):
    with pytest.raises(kind):
        follow_folder(folder, **({"load": load_json} | arguments))


async def test_files_come_change_and_go(folder, errors):
    async with follow_folder(folder, load=load_json, on_error=errors) as live:
        first = live.value
        (folder / "c.json").write_text('"c 0"')
        await until_value(live, {"a.json": "a 0", "b.json": "b 0", "c.json": "c 0"})
        replace(folder / "a.json", b'"a 1"')
        await until_value(live, {"a.json": "a 1", "b.json": "b 0", "c.json": "c 0"})
        (folder / "b.json").unlink()
        await until_value(live, {"a.json": "a 1", "c.json": "c 0"})
        (folder / "c.json").write_text('"in place"')
        await until_value(live, {"a.json": "a 1", "c.json": "in place"})
        assert dict(first) == {"a.json": "a 0", "b.json": "b 0"}


async def test_only_news_is_loaded(folder):
    loaded = Counter()

    async def load(snapshot):
        loaded[os.path.basename(snapshot.path)] += 1
        return await load_json(snapshot)

    async with follow_folder(folder, "*.json", load=load) as live:
        for number in range(1, 4):
            replace(folder / "a.json", b'"a %d"' % number)
            await until_value(live, {"a.json": f"a {number}", "b.json": "b 0"})
        (folder / "b.json").chmod(0o600)
        (folder / "b.json").rename(folder / "d.json")
        await until_value(live, {"a.json": "a 3", "d.json": "b 0"})
    assert loaded == {"a.json": 4, "b.json": 1, "d.json": 1}


async def test_empty_folder_has_no_values(tmp_path):
    async with follow_folder(tmp_path, load=load_json) as live:
        assert dict(live.value) == {}
        (tmp_path / "a").write_text("1")
        await until_value(live, {"a": 1})


async def test_iterate_over_values(folder):
    seen = []
    async with follow_folder(folder, load=load_json) as live:
        with anyio.fail_after(100):
            async for values in live:
                assert values is live.value
                seen.append(values["a.json"])
                if len(seen) == 4:
                    break
                replace(folder / "a.json", b'"a %d"' % len(seen))
    assert seen == ["a 0", "a 1", "a 2", "a 3"]


# Files that fail.


async def test_bad_file_keeps_its_last_good_value(folder, errors):
    async with follow_folder(folder, load=load_json, on_error=errors) as live:
        replace(folder / "a.json", b"not json")
        replace(folder / "b.json", b'"b 1"')
        await errors.wait("a.json", ValueError)
        await until_value(live, {"a.json": "a 0", "b.json": "b 1"})
        replace(folder / "b.json", b'"b 2"')
        await until_value(live, {"a.json": "a 0", "b.json": "b 2"})
        assert not errors.found  # a file that has not changed is not tried again
        replace(folder / "a.json", b'"a 3"')
        await until_value(live, {"a.json": "a 3", "b.json": "b 2"})


async def test_bad_file_without_a_good_value_is_missing(folder, errors):
    (folder / "a.json").write_text("")
    async with follow_folder(folder, load=load_json, on_error=errors) as live:
        await errors.wait("a.json", ValueError)
        assert dict(live.value) == {"b.json": "b 0"}
        (folder / "a.json").write_text('"mended"')
        await until_value(live, {"a.json": "mended", "b.json": "b 0"})


async def test_bad_file_removed_and_made_again(folder, errors):
    """The last good value is forgotten with the name."""
    async with follow_folder(folder, load=load_json, on_error=errors) as live:
        (folder / "a.json").unlink()
        await until_value(live, {"b.json": "b 0"})
        (folder / "a.json").write_text("bad")
        await errors.wait("a.json", ValueError)
        assert dict(live.value) == {"b.json": "b 0"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_unreadable_file_is_tried_when_it_may_be_read(folder, errors):
    (folder / "a.json").chmod(0)
    async with follow_folder(folder, load=load_json, on_error=errors) as live:
        await errors.wait("a.json", PermissionError)
        (folder / "a.json").chmod(0o600)
        await until_value(live, {"a.json": "a 0", "b.json": "b 0"})


async def test_sync_load_is_reported_for_each_file(folder, errors):
    async with follow_folder(folder, load=lambda _: 1, on_error=errors) as live:
        await errors.wait("a.json", TypeError, "has to be async")
        await errors.wait("b.json", TypeError)
        assert dict(live.value) == {}


async def test_errors_are_logged_by_default(folder, caplog):
    (folder / "a.json").write_text("bad")
    async with follow_folder(folder, load=load_json):

        async def logged():
            return str(folder / "a.json") in caplog.text

        await until(logged)
        assert "load_json" in caplog.text  # the traceback


async def test_on_error_may_be_async(folder):
    (folder / "a.json").write_text("bad")
    told = []

    async def on_error(path, error):
        await anyio.sleep(0)
        told.append((path, type(error)))

    async with follow_folder(folder, load=load_json, on_error=on_error):

        async def was_told():
            return told == [(str(folder / "a.json"), json.JSONDecodeError)]

        await until(was_told)


async def test_file_cut_off_while_loaded(folder, errors):
    async def load(snapshot):
        found = await content(snapshot)
        if len(found) > 5:
            await anyio.to_thread.run_sync(os.truncate, snapshot.path, 5)
        return found

    async with follow_folder(folder, load=load, on_error=errors) as live:
        replace(folder / "a.json", b'"a 1"' + bytes(100))
        await until_value(live, {"a.json": b'"a 1"', "b.json": b'"b 0"'})


# The folder itself.


async def test_folder_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        await follow_folder(tmp_path / "missing", load=load_json)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        await follow_folder(tmp_path / "file", load=load_json)


async def test_folder_not_required_may_come_later(tmp_path, errors):
    folder = tmp_path / "not" / "yet"
    async with follow_folder(folder, load=load_json, required=False, on_error=errors) as live:
        assert not live.ready
        with pytest.raises(anyio.WouldBlock, match="nothing good at"):
            _ = live.value
        folder.parent.mkdir()
        shutil.copytree(tmp_path / "not", tmp_path / "spare")
        made = tmp_path / "made"
        made.mkdir()
        (made / "a").write_text("1")
        made.rename(folder)
        with anyio.fail_after(100):
            await live.wait_ready()
        await until_value(live, {"a": 1})
        assert not errors.found


async def test_folder_removed_and_made_again(folder, errors):
    async with follow_folder(folder, load=load_json, on_error=errors) as live:
        folder.rename(folder.with_name("away"))
        await errors.wait("folder", FileNotFoundError)
        assert dict(live.value) == {"a.json": "a 0", "b.json": "b 0"}
        folder.mkdir()
        (folder / "a.json").write_text('"again"')
        await until_value(live, {"a.json": "again"})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_history_ends_with_what_is_there(folder, seed):
    """After random changes of any kind, the last good state of each file is served."""
    draw = random.Random(seed)
    good = {"a.json": "a 0", "b.json": "b 0"}

    def act(number):
        name = draw.choice(["a.json", "b.json", "c.json"])
        path = folder / name
        kind = draw.choice(["replace", "write", "bad", "remove", "touch"])
        if kind == "remove":
            path.unlink(missing_ok=True)
        elif kind == "touch" and path.exists():
            os.utime(path)
        elif kind == "bad":
            replace(path, b"bad %d" % number)
        elif kind == "replace":
            replace(path, json.dumps(number).encode())
        else:
            path.write_text(json.dumps(number))

    async with follow_folder(folder, "*.json", load=load_json, on_error=lambda *_: None) as live:
        for number in range(100):
            act(number)
            await anyio.sleep(draw.choice([0, 0, 0.001, 0.02]))
        for name in ("a.json", "b.json"):
            replace(folder / name, b'"at last"')
        (folder / "c.json").unlink(missing_ok=True)
        good = {"a.json": "at last", "b.json": "at last"}
        await until_value(live, good)


# What is kept alive, and ending.


async def load_bytes(snapshot):
    return await content(snapshot)


async def load_view(snapshot):
    return snapshot.view()


async def load_array(snapshot):
    return snapshot.array(np.uint8)


@pytest.mark.parametrize(("load", "kept"), [(load_bytes, 0), (load_view, 2), (load_array, 2)])
async def test_files_are_closed_once_they_are_loaded(folder, load, kept):
    def held():
        return mappings(folder)

    async with follow_folder(folder, load=load) as live:
        for number in range(1, 4):
            replace(folder / "a.json", b'"a %d"' % number)

            async def served(text=b'"a %d"' % number):
                value = live.value["a.json"]
                if isinstance(value, aiommap.View):
                    value = value.memory
                return bytes(value) == text

            await until(served)

        async def settled():
            gc.collect()
            return held() == kept

        await until(settled)
    gc.collect()


async def test_values_that_are_views_can_be_read(folder):
    async with follow_folder(folder, load=load_view) as live:
        old = live.value["a.json"]
        replace(folder / "a.json", b'"a 1"')

        async def served():
            return await live.value["a.json"].read(0, 5) == b'"a 1"'

        await until(served)
        assert await live.value["b.json"].read(0, 5) == b'"b 0"'
        assert await old.read(0, 5) == b'"a 0"'


async def test_hold_is_waited_for_at_the_end(folder):
    kept = []

    async def load(snapshot):
        kept.append(snapshot)
        return await content(snapshot)

    live = await follow_folder(folder, load=load)
    left = anyio.Event()

    async def leave():
        await live.aclose()
        left.set()

    async with anyio.create_task_group() as group:
        with kept[0].hold():
            group.start_soon(leave)
            await anyio.wait_all_tasks_blocked()
            assert not left.is_set()
            assert await content(kept[0])
        with anyio.fail_after(100):
            await left.wait()
    assert kept[0].closed
    assert kept[1].closed


@pytest.mark.parametrize("end", ["live", "hub"])
async def test_leave_while_loading(folder, errors, end):
    gate = Gate()
    async with aiommap.Hub() as hub:
        live = await follow_folder(folder, "a*", load=gate, hub=hub, on_error=errors)
        replace(folder / "a.json", b"good 1")
        with anyio.fail_after(100):
            await gate.begun.wait()
            await (live if end == "live" else hub).aclose()
            await live.aclose()
    assert (gate.cancelled, errors.found) == (1, [])
    assert live.closed
    assert mappings(folder) == 0


async def test_start_cancelled_leaves_nothing(folder):
    async def never(_):
        await anyio.sleep_forever()

    with anyio.move_on_after(0.05):
        await follow_folder(folder, load=never)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await follow_folder(folder, load=load_json)

    async def closed():
        return mappings(folder) == 0

    await until(closed)


async def test_many_files_of_one_folder(tmp_path):
    for number in range(300):
        (tmp_path / f"{number:03}").write_text(str(number))
    async with follow_folder(tmp_path, load=load_json) as live:
        assert dict(live.value) == {f"{number:03}": number for number in range(300)}
        replace(tmp_path / "007", b"1007")

        async def served():
            return live.value["007"] == 1007

        await until(served)
