"""The demo and its tools: the heartbeat, the measurements, and numbers as text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import anyio
import pytest

import aiommap
from tests.support.internals import (
    Heartbeat,
    Measurement,
    command,
    format_bytes,
    format_difference,
    format_seconds,
    format_share,
    main,
    measure_shared,
    parse_bytes,
    plural,
    printable,
    random_offsets,
)

QUICK = ("--size", "8M", "--seconds", "0.05", "--tasks", "4")
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.mark.slow
class TestDemo:
    def test_demo_does_the_main_job(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = main(["demo", *QUICK, "--dir", str(tmp_path), "--json"])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        document = json.loads(captured.out)
        assert document["other_processes"] == {
            "write_seen": True,
            "truncated_read_raised": "MappingFaultError",
            "stdlib_mmap_process": "killed by SIGBUS",
            "lost_flush_raised": "FlushError",
            "stdlib_mmap_flush": "reported as done",
        }
        assert document["durability"] == {
            "written": False,
            "awaited": True,
            "dirty_bytes": [aiommap.PAGE_SIZE, 0],
        }
        assert len(document["comparisons"]) == 5
        for comparison in document["comparisons"]:
            for side in ("aiommap", "stdlib_mmap_in_thread"):
                assert comparison[side]["operations"] > 0
                assert comparison[side]["worst_gap_seconds"] > 0
                assert comparison[side]["worst_wait_seconds"] >= 0
        groups = document["durable_writes"]
        assert 0 < groups["flushes"] <= groups["flush_requests"]
        assert list(tmp_path.iterdir()) == []

    def test_demo_tells_each_part_then_a_table(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["demo", *QUICK, "--dir", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        for part in ("on the disk yet", "durable", "Cold read", "Prewarm", "Warm reads", "process"):
            assert part in out
        assert "MappingFaultError (offset=" in " ".join(out.split())
        table, _, conclusion = out.rpartition("== ")[2].partition("\n\n")
        assert table.splitlines()[1].split() == ["aiommap", "mmap", "in", "a", "thread", "faster"]
        assert [line.partition("  ")[0] for line in table.splitlines()[2:]] == [
            "what is not durable yet",
            "truncated while it is read",
            "flush of data that was cut off",
            "loop waited, durable writes",
            "loop waited, large flush",
            "loop waited, cold read",
            "loop waited, prewarm",
            "durable writes",
            "large flush",
            "cold read",
            "prewarm",
            "warm reads",
        ]
        assert conclusion.startswith("So: while the disk worked, the loop waited ")

    def test_demo_never_writes_to_the_users_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "mine.bin"
        path.write_bytes(os.urandom(3 * aiommap.PAGE_SIZE + 1))
        path.chmod(0o444)
        before, content = path.stat(), path.read_bytes()
        assert main(["demo", str(path), *QUICK, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["bytes"] == before.st_size
        assert [comparison["name"] for comparison in document["comparisons"]] == [
            "cold read",
            "prewarm",
            "warm reads",
        ]
        after = path.stat()
        assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]

    def test_demo_reads_no_more_than_asked(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "large.bin"
        path.write_bytes(bytes(2 << 20))
        assert main(["demo", str(path), *QUICK, "--size", "1M"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "2.0 MiB, the first 1.0 MiB of it; only read" in out

    def test_demo_admits_pages_it_cannot_drop(self, capsys: pytest.CaptureFixture[str]) -> None:
        shm = Path("/dev/shm")
        if not os.access(shm, os.W_OK):
            pytest.skip("no writable /dev/shm")
        before = set(shm.glob("aiommap-demo-*"))  # the folder is not ours alone
        assert main(["demo", *QUICK, "--dir", str(shm)]) == 0
        out = capsys.readouterr().out
        assert out.count("stayed in memory") == 1
        assert set(shm.glob("aiommap-demo-*")) == before

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
    def test_demo_interrupted_cleans_up(self, tmp_path: Path, number: signal.Signals) -> None:
        command = [sys.executable, "-m", "aiommap", "demo", *QUICK, "--seconds", "60"]
        with subprocess.Popen(
            [*command, "--dir", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A job that a shell starts in the background ignores SIGINT, and so do its children.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                if "durable when" in line:
                    break
            process.send_signal(number)
            _, errors = process.communicate(timeout=100)
        assert (process.returncode, errors) == (130, "aiommap: interrupted\n")
        assert list(tmp_path.iterdir()) == []

    def test_demo_failing_half_way_cleans_up(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        async def fail(stage: object) -> None:
            raise OSError(28, "No space left on device", "demo.bin")

        monkeypatch.setattr(command, "flush_much", fail)
        assert main(["demo", *QUICK, "--dir", str(tmp_path)]) == 1
        assert capsys.readouterr().err == "aiommap: demo.bin: No space left on device\n"
        assert list(tmp_path.iterdir()) == []


class TestHeartbeat:
    @BACKENDS
    def test_heartbeat_sees_blocked_loop(self, backend: str) -> None:
        async def block() -> Heartbeat:
            async with Heartbeat() as beat:
                time.sleep(0.03)
                await anyio.sleep(0.002)
            return beat

        assert anyio.run(block, backend=backend).worst_gap >= 0.03

    @BACKENDS
    def test_heartbeat_tells_work_from_waiting(self, backend: str) -> None:
        async def work(blocked: Callable[[], object]) -> Heartbeat:
            async with Heartbeat() as beat:
                await anyio.sleep(0.002)
                blocked()
                await anyio.sleep(0.002)
            return beat

        def compute() -> None:
            while time.thread_time() < end:
                pass

        end = time.thread_time() + 0.2
        busy = anyio.run(work, compute, backend=backend)
        assert busy.worst_gap >= 0.15
        assert busy.worst_wait < busy.worst_gap / 2
        asleep = anyio.run(work, partial(time.sleep, 0.2), backend=backend)
        assert asleep.worst_wait >= 0.15

    @BACKENDS
    def test_heartbeat_sees_block_at_the_end(self, backend: str) -> None:
        async def block() -> Heartbeat:
            async with Heartbeat() as beat:
                time.sleep(0.03)
            return beat

        assert anyio.run(block, backend=backend).worst_gap >= 0.03

    @BACKENDS
    def test_heartbeat_does_not_wrap_errors(self, backend: str) -> None:
        async def fail() -> None:
            async with Heartbeat():
                raise LookupError("as it is")

        with pytest.raises(LookupError, match="as it is"):
            anyio.run(fail, backend=backend)

    @BACKENDS
    def test_heartbeat_ends_when_cancelled(self, backend: str) -> None:
        async def cancel() -> bool:
            with anyio.CancelScope() as scope:
                async with Heartbeat():
                    scope.cancel()
                    await anyio.sleep_forever()
            return scope.cancelled_caught

        assert anyio.run(cancel, backend=backend)


class TestMeasure:
    def test_measure_shares_work_once_each(self) -> None:
        done: list[int] = []

        async def operation(offset: int) -> None:
            await anyio.lowlevel.checkpoint()
            done.append(offset)

        async def measure() -> Measurement:
            return await measure_shared([operation] * 3, span=10, block=4)

        measured = anyio.run(measure)
        assert sorted(done) == [0, 4, 8]
        assert (measured.operations, measured.length) == (3, 10)

    def test_measure_offsets_are_whole_blocks(self) -> None:
        runs = random_offsets(10 * 512 + 100, 512, 3)
        drawn = [list(islice(run, 1000)) for run in runs]
        assert {offset for run in drawn for offset in run} == {512 * n for n in range(10)}
        assert drawn[0] != drawn[1]

    @pytest.mark.parametrize(("share", "latency"), [(0, 1.0), (0.5, 3.0), (0.99, 4.0), (1, 4.0)])
    def test_percentile(self, share: float, latency: float) -> None:
        measured = Measurement(4, 4, 1.0, 0.0, 0.0, (1.0, 2.0, 3.0, 4.0))
        assert measured.percentile(share) == latency


class TestText:
    @pytest.mark.parametrize(
        ("count", "text"),
        [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (256 << 20, "256.0 MiB"),
            (1 << 70, "1024.0 EiB"),
        ],
    )
    def test_format_bytes(self, count: int, text: str) -> None:
        assert format_bytes(count) == text

    @pytest.mark.parametrize(
        ("count", "text"), [(4096, "+4.0 KiB"), (-8, "-8 B"), (0, "0 B"), (1, "+1 B")]
    )
    def test_format_difference(self, count: int, text: str) -> None:
        assert format_difference(count) == text

    @pytest.mark.parametrize(
        ("text", "count"),
        [("0", 0), ("4096", 4096), ("4k", 4096), ("256M", 256 << 20), ("1 GiB", 1 << 30)],
    )
    def test_parse_bytes(self, text: str, count: int) -> None:
        assert parse_bytes(text) == count

    @pytest.mark.parametrize("text", ["", "-1", "1.5M", "K", "4KK", "٤", "0x10", "1 2"])
    def test_parse_bytes_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not a size"):
            parse_bytes(text)

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.0, "0.00 us"),
            (1.234e-6, "1.23 us"),
            (99.96e-6, "100 us"),
            (0.99951e-3, "1.00 ms"),
            (0.0345, "34.5 ms"),
            (1.5, "1.50 s"),
            (120.0, "120 s"),
        ],
    )
    def test_format_seconds(self, seconds: float, text: str) -> None:
        assert format_seconds(seconds) == text

    @pytest.mark.parametrize(
        ("part", "whole", "text"),
        [
            (0, 0, "100.0 %"),
            (0, 5, "0.0 %"),
            (1, 10**6, "0.1 %"),
            (10**6 - 1, 10**6, "99.9 %"),
            (5, 5, "100.0 %"),
        ],
    )
    def test_share_of_all_and_nothing_is_exact(self, part: int, whole: int, text: str) -> None:
        assert format_share(part, whole) == text

    @pytest.mark.parametrize(("count", "text"), [(1, "1 flush"), (2000, "2,000 flushes")])
    def test_plural(self, count: int, text: str) -> None:
        assert plural(count, "flush") == text

    @pytest.mark.parametrize(
        ("name", "text"),
        [("a b", "a b"), ("a\nb", "a\\nb"), ("\x1b[31m", "\\x1b[31m"), ("\udce9", "\\xe9")],
        ids=["plain", "newline", "escape", "undecodable"],
    )
    def test_printable(self, name: str, text: str) -> None:
        assert printable(name) == text
