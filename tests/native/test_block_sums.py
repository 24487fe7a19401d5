"""The sums of cached blocks, and the CRC32C in them, against oracles that this file writes out."""

from __future__ import annotations

import os
import signal
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.internals import CRC32C_TABLE, CRC32C_WAYS, Blocks, crc32c
from tests.support.pages import drop_pages

BLOCK, SHIFT = 4096, 12
HEADER = 4096
MASK = (1 << 64) - 1
FACTOR = 0x9E3779B97F4A7C15
SALT = 0x0123456789ABCDEF
SIZES = [1, 8, 63, 64, 65, 1007, 1008, 1009, 1151, 1152, 1153, 4095, 4096, 4097, 5 * 4096 + 777]


def crc_by_division(data, crc=0):
    """Divide by Castagnoli's polynomial, bit by bit, as its definition says."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def stir(x):
    x = (x ^ x >> 32) * FACTOR & MASK
    x = (x ^ x >> 29) * FACTOR & MASK
    return x ^ x >> 32


def sum_by_definition(data, seed):
    """Sum as sys/block_sum.h says."""
    lanes = [0] * 8
    padded = data + bytes(-len(data) % 64)
    for number, (word,) in enumerate(struct.iter_unpack("<Q", padded)):
        mixed = word + stir(seed) + (number + 1) * FACTOR & MASK
        lanes[number % 8] += (mixed & 0xFFFFFFFF) * (mixed >> 32) + word
    products = stir(len(data))
    for lane in lanes:
        products = stir(products ^ lane & MASK)
    crc = crc_by_division(data, seed & 0xFFFFFFFF)
    return products >> 32 << 32 | crc | 1 << 63


@given(st.binary(max_size=2500), st.integers(0, 15), st.integers(0, 2500))
def test_crc32c_is_the_remainder(data, start, cut):
    """At every alignment, in one piece and in two, by each way that the machine has."""
    expected = crc_by_division(data)
    placed = memoryview(bytes(start) + data)[start:]
    assert crc32c(placed) == crc32c(placed, 0, CRC32C_TABLE) == expected
    for way in CRC32C_WAYS:
        assert crc32c(placed, 0, way) in (expected, None)
        assert crc32c(placed[cut:], crc32c(placed[:cut]), way) in (expected, None)


@pytest.fixture
def stored(tmp_path):
    """Store data in blocks; return them and the sums that they were given."""
    opened = []

    def store(data):
        count = -(-len(data) // BLOCK)
        words = HEADER + (4 * count + 7) // 8 * 8
        for name, size in (("map", words + 8 * count), ("data", len(data))):
            fd = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            opened.append(fd)
            os.ftruncate(fd, size)
        map_fd, data_fd = opened[-2:]
        blocks = Blocks(map_fd, data_fd, len(data), SHIFT, 1, SALT)
        claims, _ = blocks.claim(0, count)
        assert blocks.store(claims, data, 0) == (count, 0)
        return blocks, struct.unpack(f"<{count}Q", os.pread(map_fd, 8 * count, words)), data_fd

    yield store
    for fd in opened:
        os.close(fd)


@pytest.mark.parametrize("size", SIZES)
def test_sum_is_as_defined(stored, size):
    data = os.urandom(size)
    _, sums, _ = stored(data)
    for number, found in enumerate(sums):
        block = data[number * BLOCK : (number + 1) * BLOCK]
        assert found == sum_by_definition(block, SALT ^ number * FACTOR & MASK)


def in_memory(blocks, fd, count):
    return blocks.verify(0, count)


def on_the_disk(blocks, fd, count):
    drop_pages(f"/proc/self/fd/{fd}")
    return blocks.verify(0, count)


def without_sigbus(blocks, fd, count):
    """Verify in a thread that a fault would kill: it may not load from pages that may be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
    try:
        return blocks.verify(0, count)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


WAYS = [in_memory, on_the_disk, without_sigbus]


@pytest.mark.parametrize("verify", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("size", SIZES)
def test_verify_finds_any_bit(stored, size, verify):
    data = os.urandom(size)
    blocks, sums, fd = stored(data)
    count = len(sums)
    assert verify(blocks, fd, count) == (count, 0, size)
    at = int.from_bytes(os.urandom(4), "big") % size
    os.pwrite(fd, bytes([data[at] ^ 1 << at % 8]), at)
    assert verify(blocks, fd, count) == (count - 1, 1, size)
    assert blocks.missing(0, count) == [(at // BLOCK, at // BLOCK + 1)]


@pytest.mark.parametrize("verify", WAYS, ids=lambda way: way.__name__)
def test_verify_misses_what_was_cut_off(stored, verify):
    """Also if the file ends within a page, where reads find zeros that match a block of zeros."""
    data = os.urandom(2 * BLOCK) + bytes(2 * BLOCK)
    blocks, _, fd = stored(data)
    os.truncate(fd, 2 * BLOCK + 100)
    assert verify(blocks, fd, 4) == (2, 2, 4 * BLOCK)
    assert blocks.missing(0, 4) == [(2, 4)]


def test_verify_finds_blocks_that_changed_places(stored):
    data = os.urandom(2 * BLOCK)
    blocks, _, fd = stored(data)
    os.pwrite(fd, data[BLOCK:] + data[:BLOCK], 0)
    assert blocks.verify(0, 2) == (0, 2, 2 * BLOCK)


def test_verify_finds_lines_that_changed_places(stored):
    """They are lines of one block: a sum that forgot the place of a word would see nothing."""
    data = os.urandom(BLOCK)
    blocks, _, fd = stored(data)
    os.pwrite(fd, data[64:128] + data[:64], 0)
    assert blocks.verify(0, 1) == (0, 1, BLOCK)
