"""Appends of several files and of another program to one path, against a bytearray.

The machine also checks what each append returned.
"""

from __future__ import annotations

import os
import tempfile

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import aiommap
from aiommap import PAGE_SIZE as PAGE

pieces = st.one_of(
    st.binary(max_size=20),
    st.builds(lambda b, n: bytes([b]) * n, st.integers(1, 255), st.integers(0, 3 * PAGE)),
)
batches = st.lists(pieces, max_size=5)
policies = st.sampled_from(["never", "manual", "always"])


class AppendMachine(RuleBasedStateMachine):
    """Two mapped files in mode "a+", or one in mode "r+", and another program's descriptor."""

    backend: tuple[str, dict[str, bool]]

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "file")
        self.portal_manager = start_blocking_portal(self.backend[0], self.backend[1])
        self.portal = self.portal_manager.__enter__()
        self.files = []
        self.model = bytearray()
        self.receipts = []

    @initialize(
        mode=st.sampled_from(["a+", "a+", "a+", "r+"]), policy=policies, capacity=st.booleans()
    )
    def begin(self, mode, policy, capacity):
        self.mode, self.policy = mode, policy
        self.capacity = 1 << 20 if capacity else None
        self.other = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for _ in range(2 if mode == "a+" else 1):
            self.open()

    def open(self):
        flush = getattr(aiommap.FlushPolicy, self.policy)()

        async def start():
            return await aiommap.open(
                self.path, self.mode, capacity=self.capacity, flush=flush, sparse=True
            )

        self.files.append(self.portal.call(start))

    @rule(number=st.integers(0, 1), batch=batches)
    def append(self, number, batch):
        file = self.files[number % len(self.files)]

        async def append_all():
            done = []

            async def append(piece):
                done.append((await file.append(piece), piece))

            async with anyio.create_task_group() as group:
                for piece in batch:
                    group.start_soon(append, piece)
            return done

        done = self.portal.call(append_all)
        before = len(self.model)
        self.model.extend(b"".join(batch))
        for receipt, piece in done:
            assert receipt.length == len(piece)
            assert before <= receipt.offset <= len(self.model) - len(piece)
            self.model[receipt.offset : receipt.offset + len(piece)] = piece
            self.receipts.append((receipt, piece))
            assert self.policy != "always" or receipt.durable or not piece
        assert sorted(r.offset for r, p in done if p) == sorted({r.offset for r, p in done if p})
        if batch:
            assert file.size == len(self.model)

    @rule(piece=pieces)
    def append_by_another_program(self, piece):
        os.write(self.other, piece)
        self.model.extend(piece)

    @rule(number=st.integers(0, 1), data=st.data())
    def write(self, number, data):
        file = self.files[number % len(self.files)]
        if not file.size:
            return
        offset = data.draw(st.integers(0, file.size - 1))
        piece = data.draw(st.binary(max_size=file.size - offset))
        self.portal.call(file.write, offset, piece)
        self.model[offset : offset + len(piece)] = piece
        self.receipts = [
            (r, p)
            for r, p in self.receipts
            if r.offset + r.length <= offset or offset + len(piece) <= r.offset
        ]

    @rule(number=st.integers(0, 1), more=st.integers(-5, 2 * PAGE))
    def ensure(self, number, more):
        file = self.files[number % len(self.files)]
        size = len(self.model) + more
        if self.mode == "a+" and 0 <= size <= file.capacity:
            self.portal.call(file.ensure, size)
            self.model.extend(bytes(max(more, 0)))

    @rule(number=st.integers(0, 1), keep=st.integers(0, 4 * PAGE))
    def cut(self, number, keep):
        """Cut the file once all is durable, as a program does that rotates logs by copying them."""
        for file in self.files:
            self.portal.call(file.flush)
        if keep < len(self.model):
            os.truncate(self.path, keep)
            del self.model[keep:]
            self.receipts = [(r, p) for r, p in self.receipts if r.offset + r.length <= keep]
            for file in self.files:
                self.portal.call(file.refresh)

    @rule(number=st.integers(0, 1))
    def refresh(self, number):
        file = self.files[number % len(self.files)]
        self.portal.call(file.refresh)
        assert file.size == len(self.model)

    @rule(number=st.integers(0, 1))
    def flush(self, number):
        self.portal.call(self.files[number % len(self.files)].flush)

    @rule(number=st.integers(0, 1))
    def open_anew(self, number):
        file = self.files.pop(number % len(self.files))
        self.portal.call(file.aclose)
        self.open()

    @invariant()
    def file_is_exactly_what_was_appended(self):
        with open(self.path, "rb") as file:
            assert file.read() == self.model
        for receipt, piece in self.receipts:
            assert self.model[receipt.offset : receipt.offset + receipt.length] == piece
        for file in self.files:
            assert self.portal.call(file.read, 0, file.size) == self.model[: file.size]

    def teardown(self):
        for file in self.files:
            self.portal.call(file.aclose)
        self.portal_manager.__exit__(None, None, None)
        if hasattr(self, "other"):
            os.close(self.other)
            with open(self.path, "rb") as file:
                assert file.read() == self.model
        self.folder.cleanup()


@pytest.mark.slow
def test_appends_agree_with_a_bytearray(anyio_backend):
    class Machine(AppendMachine):
        backend = anyio_backend

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, derandomize=True, database=None
        ),
    )
