from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.trainers.retention import NeededSpan, Retention, explain_alarm, is_news, retention_left

amounts = st.floats(0, 1e9, allow_nan=False)
retentions = st.builds(Retention, st.none() | st.floats(0, 1e7), st.none() | st.integers(0, 10**12))
spans = st.builds(
    NeededSpan,
    partition=st.integers(0, 3),
    offset=st.integers(0, 100),
    beginning=st.integers(0, 100),
    end=st.integers(0, 100),
    age_s=st.none() | amounts,
    size_bytes=st.none() | amounts,
)


def span(offset: int = 5, *, beginning: int = 0, end: int = 10, **more: float) -> NeededSpan:
    return NeededSpan(0, offset, beginning, end, **more)


@given(spans, retentions)
def test_the_share_lies_between_gone_and_just_written(span: NeededSpan, retention: Retention) -> None:
    left = retention_left(span, retention)
    assert left is None or 0.0 <= left <= 1.0
    assert (left == 0.0) or not span.is_cut


@given(spans, retentions, amounts, amounts)
def test_waiting_longer_never_leaves_more(
    span: NeededSpan, retention: Retention, older_s: float, larger_bytes: float
) -> None:
    later = NeededSpan(
        span.partition,
        span.offset,
        span.beginning,
        span.end,
        None if span.age_s is None else span.age_s + older_s,
        None if span.size_bytes is None else span.size_bytes + larger_bytes,
    )
    now, then = retention_left(span, retention), retention_left(later, retention)
    assert (now is None) == (then is None)
    assert now is None or then is None or then <= now


def test_the_nearer_limit_counts() -> None:
    retention = Retention(keep_s=100, keep_bytes=1000)
    assert retention_left(span(age_s=40, size_bytes=900), retention) == pytest.approx(0.1)
    assert retention_left(span(age_s=80, size_bytes=0), retention) == pytest.approx(0.2)


def test_what_is_read_to_its_end_or_never_deleted_is_not_at_stake() -> None:
    assert retention_left(span(10, age_s=99, size_bytes=9), Retention(100, 10)) is None
    assert retention_left(span(age_s=99, size_bytes=9), Retention(None, None)) is None


def test_deleted_is_nothing_left_even_without_limits() -> None:
    assert retention_left(span(5, beginning=6), Retention(None, None)) == 0.0


def test_configs_are_read_as_kafka_means_them() -> None:
    assert Retention.of_config({"retention.ms": "-1", "retention.bytes": "-1"}) == Retention(None, None)
    assert Retention.of_config({"retention.ms": "60000", "retention.bytes": "7"}) == Retention(60.0, 7)
    assert Retention.of_config({"cleanup.policy": "compact", "retention.ms": "1"}) == Retention(None, None)


def test_the_alarm_is_raised_once_and_again_when_half_of_the_rest_has_gone() -> None:
    warned: list[float] = []
    for left in (0.9, 0.24, 0.23, 0.2, 0.13, 0.11, 0.05, 0.0, 0.0):
        if is_news(left, warned[-1] if warned else None, alarm_share=0.25):
            warned.append(left)
    assert warned == [0.24, 0.11, 0.05, 0.0]
    assert not is_news(0.0, None, alarm_share=0.0), "0 turns it off"


def test_the_alarm_says_what_is_at_stake_and_what_to_do() -> None:
    text = explain_alarm("t.trajectories", span(7, age_s=3600 * 150.0), 0.1, Retention(3600 * 168.0, None))
    assert "t.trajectories/0: record 7" in text
    assert "150.0 h old of 168.0 h kept: 10% of the retention is left" in text
    cut = explain_alarm("t.trajectories", span(5, beginning=8, end=20), 0.0, Retention(None, None))
    assert "records 5 to 7 are deleted" in cut
