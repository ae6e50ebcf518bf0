from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.trainers.intervals import IntervalSet

NUMBERS = st.lists(st.integers(0, 40), max_size=60)


@given(NUMBERS)
def test_it_is_the_set_of_what_was_added(numbers: list[int]) -> None:
    intervals = IntervalSet()
    for number in numbers:
        intervals.add(number)
    assert {n for n in range(50) if n in intervals} == set(numbers)
    assert len(intervals) == len(set(numbers))


@given(NUMBERS)
def test_pairs_are_ascending_apart_and_rebuild_the_set(numbers: list[int]) -> None:
    intervals = IntervalSet()
    for number in numbers:
        intervals.add(number)
    pairs = intervals.intervals()
    assert all(start < end for start, end in pairs)
    assert all(left[1] < right[0] for left, right in pairwise(pairs))
    assert IntervalSet(pairs).intervals() == pairs


@given(NUMBERS, st.integers(0, 45), st.integers(0, 45))
def test_missing_numbers_are_those_of_the_range_that_were_not_added(numbers: list[int], start: int, end: int) -> None:
    intervals = IntervalSet()
    for number in numbers:
        intervals.add(number)
    assert list(intervals.missing(start, end)) == [n for n in range(start, end) if n not in set(numbers)]


@pytest.mark.parametrize("pairs", [[(3, 3)], [(-1, 2)], [(0, 2), (2, 4)], [(4, 5), (0, 1)]])
def test_pairs_that_no_set_would_give_are_refused(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="intervals must be"):
        IntervalSet(pairs)
