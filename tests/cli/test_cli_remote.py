"""``aiommap cache``, and commands that are given URLs instead of files: ``file://`` and HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading

import pytest

from tests.cli.test_cli import command
from tests.support import remote_servers
from tests.support.internals import main

SIZE = 1_000_003


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "stored"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def url(stored):
    return stored.as_uri()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_prewarm_and_residency(run, url, cache):
    code, out, err = run("residency", url, "--cache", cache)
    assert (code, err) == (0, "")
    assert out.startswith("  0.0 %")
    code, out, err = run("prewarm", url, "--cache", cache)
    assert (code, err) == (0, "")
    assert out.startswith(f"{url}: ")
    assert "976.6 KiB of 976.6 KiB cached (100.0 %), 0.0 % before" in out
    code, out, _ = run("prewarm", url, "--cache", cache, "--json")
    (found,) = json.loads(out)["files"]
    assert (found["size"], found["cached_bytes"], found["gets"]) == (SIZE, SIZE, 0)
    assert run("residency", url, "--cache", cache)[1].startswith("100.0 %")
    (found,) = json.loads(run("residency", url, "--cache", cache, "--json")[1])["files"]
    assert (found["bytes"], found["cached_bytes"], found["remote_bytes"]) == (SIZE, SIZE, 0)
    assert found["runs"] == [[0, SIZE]]


def test_files_and_urls_together(run, url, stored, cache):
    code, out, _ = run("prewarm", stored, url, "--cache", cache, "--json")
    assert code == 0
    assert [found["path"] for found in json.loads(out)["files"]] == [str(stored), url]
    code, out, _ = run("residency", stored, url, "--cache", cache)
    assert (code, len(out.splitlines())) == (0, 3)
    assert out.splitlines()[-1].endswith("total of 1 file")


@pytest.mark.parametrize("name", ["prewarm", "residency", "bench"])
def test_missing_objects_are_told(run, tmp_path, cache, name):
    missing = (tmp_path / "missing").as_uri()
    code, _, err = run(name, missing, "--cache", cache)
    assert code == 1
    assert err.startswith(f"aiommap: {missing}: ")
    assert err.count("\n") == 1


def test_cache_of_nothing(run, cache):
    for verb in ("info", "list", "clear", "verify"):
        code, out, err = run("cache", verb, "--cache", cache)
        assert (code, out) == (1, "")
        assert err.startswith(f"aiommap: {cache}: there is no such folder")
    assert not cache.exists()


def test_cache_tells_what_it_holds(run, url, cache):
    run("prewarm", url, "--cache", cache)
    code, out, err = run("cache", "info", "--cache", cache)
    assert (code, err) == (0, "")
    assert "1, of which 0 in use" in out
    assert "976.6 KiB of 976.6 KiB" in out
    found = json.loads(run("cache", "info", "--cache", cache, "--json")[1])
    assert (found["objects"], found["cached_bytes"]) == (1, SIZE)
    assert found["used_bytes"] >= SIZE
    code, out, _ = run("cache", "list", "--cache", cache)
    assert (code, out.splitlines()[1].split()[-1]) == (0, url)
    (entry,) = json.loads(run("cache", "list", "--cache", cache, "--json")[1])["objects"]
    assert (entry["url"], entry["state"]["size"], entry["cached_bytes"]) == (url, SIZE, SIZE)


def test_cache_is_cleared(run, url, cache, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(os.urandom(SIZE))
    run("prewarm", url, other.as_uri(), "--cache", cache)
    code, out, err = run("cache", "clear", url, "--cache", cache)
    assert (code, err) == (0, "")
    assert out.endswith("given up\n")
    found = json.loads(run("cache", "list", "--cache", cache, "--json")[1])["objects"]
    assert [entry["url"] for entry in found] == [other.as_uri()]
    assert json.loads(run("cache", "clear", "--cache", cache, "--json")[1])["freed_bytes"] >= SIZE
    assert run("cache", "list", "--cache", cache)[1] == "nothing is cached\n"


def test_cache_is_verified(run, url, cache, stored):
    run("prewarm", url, "--cache", cache)
    code, out, err = run("cache", "verify", "--cache", cache)
    assert (code, err) == (0, "")
    assert out == "4 blocks of 1 object compared, 976.6 KiB: 0 were wrong and given up\n"
    (data,) = cache.rglob("*.data")
    with open(data, "r+b") as file:
        file.seek(SIZE // 2)
        byte = file.read(1)
        file.seek(SIZE // 2)
        file.write(bytes([byte[0] ^ 1]))
    code, out, err = run("cache", "verify", "--cache", cache)
    assert (code, "1 were wrong" in out) == (1, True)
    assert err.startswith(f"aiommap: {cache}: 1 block did not have the right bytes")
    assert run("cache", "verify", "--cache", cache)[0] == 0
    code, out, _ = run("prewarm", url, "--cache", cache, "--json")
    assert json.loads(out)["files"][0]["gets"] == 1


@pytest.mark.slow
def test_bench_of_a_url(run, url, cache):
    short = ("--seconds", "0.05", "--tasks", "2", "--cache", cache)
    code, out, err = run("bench", url, *short)
    assert (code, err) == (0, "")
    assert "obstore in a thread" in out
    found = json.loads(run("bench", url, *short, "--cold", "--json")[1])
    assert [each["name"] for each in found["contenders"]] == ["aiommap", "obstore in a thread"]
    assert all(each["operations"] for each in found["contenders"])


def test_engine_that_is_missing_is_told(run, url, cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run("prewarm", url, "--cache", cache)
    assert code == 1
    assert "pip install 'aiommap[remote]'" in err


@pytest.mark.slow
def test_watch_of_urls(tmp_path):
    server = remote_servers.start(remote_servers.Nginx, tmp_path)
    try:
        url = server.url("watched")
        arguments = ["watch", url, "--interval", "0.01", "--json", "--exec", "echo $AIOMMAP_KIND"]
        with subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            killer = threading.Timer(40, process.kill)  # so that no read of a line waits forever
            killer.start()
            assert json.loads(process.stdout.readline()) == {"command": "watch", "paths": [url]}
            for kind, change in (
                ("created", lambda: server.put("watched", b"one")),
                ("replaced", lambda: server.put("watched", b"three")),
                ("removed", lambda: server.delete("watched")),
            ):
                change()
                told = json.loads(process.stdout.readline())
                assert (told["kind"], told["path"]) == (kind, url)
                assert process.stderr.readline() == f"{kind}\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(100) == 0
            killer.cancel()
    finally:
        server.stop()


def test_info_takes_no_urls(run):
    code, _, problems = run("info", "s3://bucket/key")
    assert code == 2
    assert "aiommap residency URL" in problems
