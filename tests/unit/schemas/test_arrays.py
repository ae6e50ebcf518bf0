from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rollstream.schemas.arrays import pack_array, pack_array_in_planes, unpack_array
from rollstream.schemas.ids import group_partition

int32_lists = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40)


@given(int32_lists, st.booleans())
def test_int32_comes_back_from_both_layouts(values: list[int], in_planes: bool) -> None:
    array = np.array(values, dtype=np.int32)
    packed = (pack_array_in_planes if in_planes else pack_array)(array)
    assert packed.code == (17 if in_planes else 1)
    assert_array_equal(unpack_array(packed.code, memoryview(packed.data)), array)


@given(st.lists(st.floats(width=32), max_size=40), st.booleans())
def test_float32_comes_back_bit_for_bit_nan_included(values: list[float], in_planes: bool) -> None:
    array = np.array(values, dtype=np.float32)
    packed = (pack_array_in_planes if in_planes else pack_array)(array)
    decoded = unpack_array(packed.code, memoryview(packed.data))
    assert decoded.dtype == np.float32
    assert decoded.tobytes() == array.tobytes()


@given(st.lists(st.integers(0, 1), max_size=70))
def test_flags_take_one_bit_each_and_one_byte(values: list[int]) -> None:
    packed = pack_array(np.array(values, dtype=np.uint8))
    assert len(bytes(packed.data)) == 1 + (len(values) + 7) // 8
    assert_array_equal(unpack_array(3, memoryview(packed.data)), np.array(values, dtype=np.uint8))


def test_planes_stand_in_the_documented_order() -> None:
    packed = pack_array_in_planes(np.array([0x04030201, 0x14131211], dtype=np.int32))
    assert packed.data == bytes([0x01, 0x11, 0x02, 0x12, 0x03, 0x13, 0x04, 0x14])


def test_a_big_endian_array_is_written_little_endian() -> None:
    packed = pack_array(np.array([1, 2], dtype=">i4"))
    assert packed.data == bytes([1, 0, 0, 0, 2, 0, 0, 0])


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, 2]),
        np.array([1.0]),
        np.array([True]),
        np.ones((2, 2), np.int32),
        np.array([2], dtype=np.uint8),
        {1, 2},
    ],
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        pack_array(value)


@pytest.mark.parametrize("code", [0, 4, 16, 19, 99, -1, -127])
def test_unknown_extensions_stay_what_they_are(code: int) -> None:
    assert unpack_array(code, memoryview(b"data")) == msgspec.msgpack.Ext(code, b"data")


@given(st.binary(min_size=4, max_size=16), st.integers(1, 64))
def test_a_group_has_one_partition_in_range(digest: bytes, partitions: int) -> None:
    partition = group_partition(digest.hex(), partitions)
    assert 0 <= partition < partitions
    assert partition == group_partition(digest.hex(), partitions)
