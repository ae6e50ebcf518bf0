"""OffsetTracker: nothing unfinished is ever committed past."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from rollstream.transport.offsets import OffsetTracker


def test_nothing_is_committable_before_the_first_record() -> None:
    assert OffsetTracker().committable is None


def test_the_lowest_unfinished_offset_is_committable_whatever_finished_above_it() -> None:
    tracker = OffsetTracker()
    for offset in (5, 6, 7):
        assert tracker.begin(offset)
    tracker.finish(6)
    tracker.finish(7)
    assert tracker.committable == 5
    tracker.finish(5)
    assert tracker.committable == 8


def test_a_record_delivered_again_is_recognised_whether_it_runs_or_is_finished() -> None:
    tracker = OffsetTracker()
    tracker.begin(1)
    tracker.begin(2)
    tracker.finish(2)
    assert not tracker.begin(1)
    assert not tracker.begin(2)
    assert tracker.begin(3)


def test_finishing_twice_changes_nothing() -> None:
    tracker = OffsetTracker()
    tracker.begin(4)
    tracker.finish(4)
    tracker.finish(4)
    assert tracker.committable == 5


@given(
    gaps=st.lists(st.integers(1, 3), min_size=1, max_size=60),
    order=st.randoms(use_true_random=False),
    finished_share=st.floats(0, 1),
)
def test_committable_is_always_the_lowest_unfinished_or_the_next(
    gaps: list[int], order: Random, finished_share: float
) -> None:
    offsets = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    tracker = OffsetTracker()
    for offset in offsets:
        tracker.begin(offset)
    shuffled = list(offsets)
    order.shuffle(shuffled)
    unfinished = set(offsets)
    for offset in shuffled[: int(len(shuffled) * finished_share)]:
        tracker.finish(offset)
        unfinished.discard(offset)
        assert tracker.committable == (min(unfinished) if unfinished else offsets[-1] + 1)
    assert tracker.unfinished == unfinished


def test_what_was_finished_when_the_partition_was_taken_on_is_not_worked_on_and_is_committed_past() -> None:
    tracker = OffsetTracker()
    tracker.starts_at = 7

    assert [tracker.begin(offset) for offset in (5, 6)] == [False, False]
    assert tracker.committable == 7
    assert tracker.begin(7)
    assert tracker.committable == 7
