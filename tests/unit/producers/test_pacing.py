from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.producers.acknowledged import AcknowledgedPrefix
from rollstream.producers.emit_claims import Claim
from rollstream.producers.pacing import decide_pace
from rollstream.schemas.control import Pause, TrainerProgress


def trainer(emit_limit: int | None) -> TrainerProgress:
    return TrainerProgress(
        trainer_id="t", lineage=0, version=0, groups_consumed=0, groups_dropped=0, emit_limit=emit_limit
    )


@given(limit=st.integers(0, 1000), others=st.integers(0, 1000), start=st.integers(0, 1000), size=st.integers(1, 9))
def test_a_paced_producer_stops_exactly_at_what_is_left_of_the_limit(
    limit: int, others: int, start: int, size: int
) -> None:
    claim, taken = Claim("mine", start, start + size, 5), [Claim("theirs", others, others, 3)]
    emitted = start
    while (
        decide_pace(emitted, pacing="follow", trainer=trainer(limit), pause=None, claim=claim, others=taken).state
        == "emitting"
    ):
        emitted += 1
    assert emitted == min(start + size, max(start, limit - others))


@pytest.mark.parametrize("claim", [None, Claim("mine", 0, 4, 5)])
def test_a_group_beyond_the_claim_needs_another_one(claim: Claim | None) -> None:
    pace = decide_pace(4, pacing="follow", trainer=trainer(100), pause=None, claim=claim)
    assert (pace.state, pace.groups_allowed, pace.needs_claim) == ("waiting_for_trainer", 100, True)


def test_a_paced_producer_waits_for_the_first_trainer_and_claims_nothing_yet() -> None:
    pace = decide_pace(0, pacing="wait", trainer=None, pause=None)
    assert (pace.state, pace.groups_allowed, pace.needs_claim) == ("waiting_for_trainer", 0, False)


def test_without_a_trainer_there_is_no_limit_to_follow() -> None:
    assert decide_pace(10**6, pacing="follow", trainer=None, pause=None).state == "emitting"


def test_a_trainer_without_a_limit_does_not_hold_anybody_up() -> None:
    pace = decide_pace(10**6, pacing="wait", trainer=trainer(None), pause=None)
    assert (pace.state, pace.groups_allowed, pace.needs_claim) == ("emitting", None, False)


def test_an_unpaced_producer_passes_the_limit() -> None:
    assert decide_pace(10, pacing="free", trainer=trainer(5), pause=None).state == "emitting"


def test_a_pause_holds_even_an_unpaced_producer_until_it_is_lifted() -> None:
    assert decide_pace(0, pacing="free", trainer=None, pause=Pause(is_paused=True)).state == "paused"
    assert decide_pace(0, pacing="free", trainer=None, pause=Pause(is_paused=False)).state == "emitting"


def test_who_is_paused_claims_nothing() -> None:
    assert not decide_pace(0, pacing="follow", trainer=trainer(9), pause=Pause(is_paused=True)).needs_claim


@given(st.permutations(range(30)), st.integers(0, 30))
def test_the_acknowledged_prefix_has_no_gap(order: list[int], cut: int) -> None:
    prefix = AcknowledgedPrefix()
    for index in order[:cut]:
        prefix.add(index)
    done = set(order[:cut])
    assert set(range(prefix.count)) <= done
    assert prefix.count not in done
