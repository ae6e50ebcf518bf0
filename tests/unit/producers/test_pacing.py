from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollstream.producers.acknowledged import AcknowledgedPrefix
from rollstream.producers.pacing import decide_pace, groups_of_other_runs
from rollstream.schemas.control import Pause, ProducerProgress, TrainerProgress


def trainer(emit_limit: int | None) -> TrainerProgress:
    return TrainerProgress(
        trainer_id="t", lineage=0, version=0, groups_consumed=0, groups_dropped=0, emit_limit=emit_limit
    )


def progress(run_id: str, groups: int, *, is_train: bool = True) -> ProducerProgress:
    return ProducerProgress(run_id=run_id, groups_emitted=groups, group_size=8, is_train=is_train)


@given(limit=st.integers(0, 1000), others=st.integers(0, 1000))
def test_a_paced_producer_stops_exactly_at_what_is_left_of_the_limit(limit: int, others: int) -> None:
    emitted = 0
    while decide_pace(
        emitted, pacing="follow", trainer=trainer(limit), pause=None, groups_of_other_runs=others
    ).state == ("emitting"):
        emitted += 1
    assert emitted == max(0, limit - others)


def test_a_paced_producer_waits_for_the_first_trainer() -> None:
    assert decide_pace(0, pacing="wait", trainer=None, pause=None).state == "waiting_for_trainer"


def test_without_a_trainer_there_is_no_limit_to_follow() -> None:
    assert decide_pace(10**6, pacing="follow", trainer=None, pause=None).state == "emitting"


def test_a_trainer_without_a_limit_does_not_hold_anybody_up() -> None:
    pace = decide_pace(10**6, pacing="wait", trainer=trainer(None), pause=None)
    assert (pace.state, pace.groups_allowed) == ("emitting", None)


def test_an_unpaced_producer_passes_the_limit() -> None:
    assert decide_pace(10, pacing="free", trainer=trainer(5), pause=None).state == "emitting"


def test_a_pause_holds_even_an_unpaced_producer_until_it_is_lifted() -> None:
    assert decide_pace(0, pacing="free", trainer=None, pause=Pause(is_paused=True)).state == "paused"
    assert decide_pace(0, pacing="free", trainer=None, pause=Pause(is_paused=False)).state == "emitting"


def test_only_other_training_runs_count_against_the_limit() -> None:
    progresses = [progress("mine", 7), progress("theirs", 5), progress("eval", 100, is_train=False)]
    assert groups_of_other_runs(progresses, "mine") == 5


@given(st.permutations(range(30)), st.integers(0, 30))
def test_the_acknowledged_prefix_has_no_gap(order: list[int], cut: int) -> None:
    prefix = AcknowledgedPrefix()
    for index in order[:cut]:
        prefix.add(index)
    done = set(order[:cut])
    assert set(range(prefix.count)) <= done
    assert prefix.count not in done
