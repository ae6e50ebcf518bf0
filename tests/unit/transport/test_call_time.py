from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollstream.transport.call_time import AWAY_AFTER_S, CallTime


def ten_seconds(put_off_s: float = 30.0) -> CallTime:
    return CallTime(deadline=1000.0, ends_at=10.0, reached_at=0.0, put_off_left_s=put_off_s, allowed_s=10.0)


def test_a_prompt_send_costs_and_gives_nothing() -> None:
    time = ten_seconds()
    time.sent(began=0.0, now=AWAY_AFTER_S)
    assert (time.left_s(AWAY_AFTER_S), time.deadline) == (10.0 - AWAY_AFTER_S, 1000.0)


def test_the_time_a_send_had_to_wait_is_given_back() -> None:
    time = ten_seconds()
    time.sent(began=0.0, now=8.0)
    assert (time.left_s(8.0), time.deadline, time.put_off_left_s) == (10.0, 1008.0, 22.0)


def test_an_outage_counts_from_when_the_broker_was_last_reached() -> None:
    time = ten_seconds()
    time.sent(began=0.0, now=0.1)
    time.sent(began=10.5, now=15.1)  # nobody noticed before the last look
    assert time.ends_at == 25.0


def test_only_so_much_is_given_back_in_all() -> None:
    time = ten_seconds(put_off_s=5.0)
    assert time.send_limit_s(0.0) == 15.0
    time.sent(began=0.0, now=4.0)
    assert time.send_limit_s(4.0) == 11.0
    time.sent(began=4.0, now=14.0)
    assert (time.ends_at, time.deadline, time.put_off_left_s) == (15.0, 1005.0, 0.0)
    assert time.send_limit_s(16.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), max_size=10), st.floats(0, 30))
def test_a_call_never_ends_earlier_nor_much_later_than_its_time_and_the_outages(
    sends: list[tuple[float, float]], put_off_s: float
) -> None:
    time = ten_seconds(put_off_s)
    now = 0.0
    for pause_s, took_s in sends:
        began = now + pause_s
        now = began + took_s
        time.sent(began, now)
        assert 10.0 <= time.ends_at <= 10.0 + put_off_s + 1e-6
        assert abs((time.ends_at - 10.0) - (time.deadline - 1000.0)) < 1e-6


def test_a_call_that_has_to_wait_for_a_place_has_all_its_time_again() -> None:
    time = ten_seconds()
    time.busy(now=8.0)
    assert (time.left_s(8.0), time.deadline, time.put_off_left_s) == (10.0, 1008.0, 22.0)
    time.busy(now=8.0)
    assert time.deadline == 1008.0


def test_a_call_waits_for_a_place_only_so_long() -> None:
    time = ten_seconds(put_off_s=5.0)
    for now in (4.0, 8.0, 12.0):
        time.busy(now)
    assert (time.ends_at, time.deadline) == (15.0, 1005.0)
