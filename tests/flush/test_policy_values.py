"""Flush policies are values: equal by content, hashable, picklable, combinable, immutable."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import pytest

from aiommap import FlushPolicy
from tests.support.internals import FlushTrigger

POLICIES = {
    "never": FlushPolicy.never(),
    "manual": FlushPolicy.manual(),
    "always": FlushPolicy.always(),
    "every_bytes": FlushPolicy.every_bytes(4096),
    "every_writes": FlushPolicy.every_writes(10),
    "every_interval": FlushPolicy.every_interval(0.5),
    "max_dirty": FlushPolicy.max_dirty(1 << 20),
}
all_policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@pytest.mark.parametrize(
    ("name", "at_close", "each_write", "passive"),
    [
        ("never", False, False, True),
        ("manual", True, False, True),
        ("always", True, True, True),
        ("every_bytes", True, False, False),
        ("every_writes", True, False, False),
        ("every_interval", True, False, False),
        ("max_dirty", True, False, False),
    ],
)
def test_policies_make_their_own_promise(name, at_close, each_write, passive):
    policy = POLICIES[name]
    found = (policy.flush_at_close, policy.flush_each_write, policy.passive)
    assert found == (at_close, each_write, passive)


def test_policies_differ():
    assert len(set(POLICIES.values())) == len(POLICIES)


@all_policies
def test_policies_survive_copy_pickle_and_repr(policy):
    assert copy.copy(policy) == pickle.loads(pickle.dumps(policy)) == policy
    assert eval(repr(policy), {"FlushPolicy": FlushPolicy}) == policy


@all_policies
def test_policies_cannot_be_changed(policy):
    with pytest.raises(dataclasses.FrozenInstanceError, match="flush_at_close"):
        policy.flush_at_close = False
    # A frozen dataclass with slots raises one of these errors for a new name.
    with pytest.raises((AttributeError, TypeError)):
        policy.unheard_of = 1


def test_combined_policies_take_the_first():
    every = FlushPolicy.every_bytes(100) | FlushPolicy.every_writes(7)
    every = every | FlushPolicy.every_bytes(50) | FlushPolicy.every_interval(2)
    assert (every.due_bytes, every.due_writes, every.due_seconds) == (50, 7, 2.0)
    assert eval(repr(every), {"FlushPolicy": FlushPolicy}) == every
    assert FlushPolicy.manual() | every == every
    assert (FlushPolicy.always() | every).flush_each_write


def test_combined_never_with_itself_only():
    never = FlushPolicy.never()
    assert never | never == never
    with pytest.raises(ValueError, match=r"never\(\) promises .* start from manual\(\)"):
        _ = FlushPolicy.every_bytes(1) | never
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = never | 1


@pytest.mark.parametrize("make", ["every_bytes", "every_writes", "max_dirty"])
@pytest.mark.parametrize("count", [0, -1])
def test_count_is_at_least_one(make, count):
    with pytest.raises(ValueError, match=rf"{make} got {count}: give at least 1"):
        getattr(FlushPolicy, make)(count)
    with pytest.raises(TypeError, match="integer"):
        getattr(FlushPolicy, make)(1.5)


@pytest.mark.parametrize("seconds", [0, -1.0, math.inf, math.nan])
def test_interval_is_finite_and_positive(seconds):
    with pytest.raises(ValueError, match=r"every_interval got .*: give seconds, finite and above"):
        FlushPolicy.every_interval(seconds)


def test_trigger_counts_bytes_and_writes_apart():
    trigger = FlushTrigger(FlushPolicy.every_bytes(100) | FlushPolicy.every_writes(3))
    assert not trigger.due(99, 2, 0.0, 0.0)
    assert trigger.due(100, 1, 0.0, 0.0)
    assert trigger.due(3, 3, 0.0, 0.0)
    trigger.began(100, 2)
    assert trigger.limits() == (200, 5)
    assert not trigger.due(199, 4, 0.0, 0.0)
    assert trigger.due(199, 5, 0.0, 0.0)


def test_trigger_interval_from_oldest_byte():
    trigger = FlushTrigger(FlushPolicy.every_interval(2.0))
    assert trigger.deadline(10.0) == 12.0
    assert not trigger.due(1 << 40, 1 << 40, 10.0, 11.9)
    assert trigger.due(0, 0, 10.0, 12.0)


def test_trigger_is_never_due_when_clean():
    trigger = FlushTrigger(FlushPolicy.every_bytes(1) | FlushPolicy.every_interval(1))
    assert not trigger.due(10, 10, None, 100.0)
    assert trigger.deadline(None) is None


@pytest.mark.parametrize("name", ["never", "manual", "always", "max_dirty"])
def test_trigger_without_threshold(name):
    trigger = FlushTrigger(POLICIES[name])
    assert trigger.limits() == (None, None)
    assert not trigger.due(1 << 60, 1 << 60, 0.0, 1e9)
