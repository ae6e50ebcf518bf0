from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.adapters.atropos.served_batches import ServedBatches, WaitingGroup, exact_places

BATCH_SIZE = 4


def group(index: int, *, size: int = 2, staleness: int | None = 0, version: int = 0) -> WaitingGroup:
    state = {"next": index, "version": version}
    return WaitingGroup(("run", index), size, {"index": index}, staleness, version, state)


def indices(batch: list[Any] | None) -> list[int] | None:
    return None if batch is None else [data["index"] for data in batch]


def ask(ledger: ServedBatches, *, version: int = 0, max_staleness: int | None = None) -> list[int] | None:
    if not ledger.asked():
        return None
    return indices(ledger.next_batch(BATCH_SIZE, version=version, max_staleness=max_staleness))


def ledger_of(*groups: WaitingGroup, pauses: bool = False) -> ServedBatches:
    ledger = ServedBatches(pauses=pauses)
    for waiting in groups:
        assert ledger.add(waiting)
    ledger.note_state({"next": len(groups), "version": 0})
    return ledger


def written(ledger: ServedBatches, *, has_left: bool = True) -> dict[str, Any]:
    """As the state file holds it."""
    return json.loads(json.dumps(ledger.saved(has_left=has_left)))


def restarted(ledger: ServedBatches, *, pauses: bool = False, has_left: bool = True) -> ServedBatches:
    return ServedBatches(written(ledger, has_left=has_left), pauses=pauses)


@given(sizes=st.lists(st.integers(1, 6), max_size=9), total=st.integers(0, 16))
def test_the_earliest_groups_that_add_up_exactly_are_taken(sizes: list[int], total: int) -> None:
    every = [
        list(places)
        for count in range(1, len(sizes) + 1)
        for places in combinations(range(len(sizes)), count)
        if sum(sizes[place] for place in places) == total
    ]
    assert exact_places(sizes, total) == min(every, default=None)


def test_batches_are_exact_and_in_the_order_of_the_stream() -> None:
    ledger = ledger_of(group(0, size=3), group(1, size=2), group(2, size=2), group(3, size=1))
    assert ask(ledger) == [0, 3]
    assert ask(ledger) == [1, 2]
    assert ask(ledger) is None
    assert ledger.step == 2


def test_after_each_batch_a_trainer_that_collects_batches_is_told_once_that_there_is_none() -> None:
    ledger = ledger_of(*map(group, range(4)), pauses=True)
    assert ask(ledger) == [0, 1]
    assert ask(ledger) is None
    assert written(ledger)["outstanding"] == [["run", 0], ["run", 1]], "it is training on it now"
    assert ask(ledger) == [2, 3]
    assert written(ledger)["outstanding"] == [["run", 2], ["run", 3]]


def test_a_trainer_that_registers_again_gets_the_batch_it_has_not_finished() -> None:
    ledger = ledger_of(*map(group, range(6)))
    assert ask(ledger) == [0, 1]
    assert ask(ledger) == [2, 3]
    ledger.register({}, 0)
    assert ask(ledger) == [2, 3]


def test_a_trainer_that_registers_at_the_present_step_has_finished_its_batch() -> None:
    ledger = ledger_of(*map(group, range(4)))
    assert ask(ledger) == [0, 1]
    after = restarted(ledger)
    for survivor in (ledger, after):
        survivor.register({}, 1)
    for index in range(4):
        after.add(group(index))
    assert ask(ledger) == ask(after) == [2, 3]


def test_a_step_that_was_lost_once_is_not_trained_on_twice_later() -> None:
    ledger = ledger_of(*map(group, range(6)))
    ledger.register({}, 0)
    assert ask(ledger) == [0, 1]
    assert ask(ledger) == [2, 3]
    ledger.register({}, 1)
    assert ask(ledger) == [2, 3], "it had saved after the first batch only"
    ledger = restarted(ledger)
    for index in range(2, 6):
        ledger.add(group(index))
    ledger.register({}, 2)
    assert ask(ledger) == [4, 5], "it has saved after the second"


def test_a_trainer_that_begins_anew_from_its_first_step_keeps_its_own_count() -> None:
    ledger = ledger_of(*map(group, range(4)))
    ledger.register({}, 5)
    assert ask(ledger) == [0, 1]
    ledger.register({}, 0)
    assert ask(ledger) == [0, 1]
    ledger.register({}, 1)
    assert ask(ledger) == [2, 3]


def test_groups_that_grow_too_old_while_they_wait_are_dropped() -> None:
    ledger = ledger_of(group(0, staleness=2), group(1), group(2), group(3, staleness=None))
    assert ask(ledger, version=1, max_staleness=2) == [1, 2]
    assert ledger.stale_dropped == 2
    assert ledger.waiting_groups == 0


def test_steps_never_fall_whatever_a_trainer_says_it_begins_with() -> None:
    ledger = ledger_of(group(0), group(1))
    ledger.register({}, 7)
    ask(ledger)
    assert ledger.step == 8
    ledger.register({}, 0)
    assert ledger.step == 8


def test_a_restart_reads_again_from_the_oldest_group_that_is_not_trained_on() -> None:
    ledger = ledger_of(group(0, size=3), group(1), group(2))
    assert ask(ledger) == [1, 2]
    assert ask(ledger) is None
    saved = written(ledger)
    assert saved["stream"] == {"next": 0, "version": 0}
    assert saved["done"] == [["run", 1], ["run", 2]]


def test_a_question_after_a_restart_finishes_the_batch_of_before_it() -> None:
    answered = ledger_of(group(0), group(1))
    assert ask(answered) == [0, 1]
    ledger = restarted(answered)
    assert ask(ledger) is None
    assert not ledger.add(group(0))
    assert not ledger.add(group(1))
    assert ask(ledger) is None


def test_a_restart_knows_the_policies_of_now_wherever_it_reads_from() -> None:
    ledger = ledger_of(group(0, version=3))
    ledger.note_state({"next": 1, "version": 5, "lineage": 9, "forks": [], "policy": None})
    assert written(ledger)["stream"] == {"next": 0, "version": 5, "lineage": 9, "forks": [], "policy": None}


@given(
    sizes=st.lists(st.sampled_from([1, 2, 2, 3, 4]), min_size=1, max_size=20),
    moves=st.lists(
        st.sampled_from(["arrive", "ask", "kill", "kill before the answer has left", "register"]), max_size=60
    ),
    pauses=st.booleans(),
)
def test_whatever_dies_and_when_no_group_is_skipped_and_none_is_finished_twice(
    sizes: list[int], moves: list[str], pauses: bool
) -> None:
    ledger, place = ServedBatches(pauses=pauses), 0
    ledger.note_state({"next": 0})
    finished: list[int] = []
    in_hand: list[int] = []
    """What a trainer has that finishes its batch by asking again, and forgets it when it dies."""

    def take_in() -> None:
        nonlocal place
        ledger.add(group(place, size=sizes[place]))
        place += 1
        ledger.note_state({"next": place})

    def question(*, dies: bool = False) -> None:
        nonlocal ledger, place, in_hand
        if not ledger.asked():
            return
        finished.extend(in_hand)
        batch = indices(ledger.next_batch(BATCH_SIZE, version=0, max_staleness=None))
        in_hand = [] if batch is None or dies else batch
        if dies:
            ledger, place = revived(has_left=False)

    def revived(*, has_left: bool) -> tuple[ServedBatches, int]:
        after = restarted(ledger, pauses=pauses, has_left=has_left)
        state = after.stream_state
        return after, 0 if state is None else int(state["next"])

    for move in moves:
        if move == "arrive" and place < len(sizes):
            take_in()
        elif move == "ask":
            question()
        elif move == "kill":
            ledger, place = revived(has_left=True)
        elif move == "register":
            in_hand = []
            ledger.register({}, 0)
        elif move == "kill before the answer has left":
            question(dies=True)
    while place < len(sizes):
        take_in()
    for _ in range(3 * len(sizes) + 3):
        question()
    finished += in_hand
    assert len(finished) == len(set(finished))
    left = [size for index, size in enumerate(sizes) if index not in finished]
    assert exact_places(left, BATCH_SIZE) is None, "nothing waits that could have been a batch"
    assert len(left) == ledger.waiting_groups


@pytest.mark.parametrize("saved", [{"format": 1}, {"topic": "trajectories"}])
def test_a_state_file_of_something_else_is_refused(saved: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="name another"):
        ServedBatches(saved)


def test_a_state_file_of_a_later_format_is_refused() -> None:
    with pytest.raises(SettingsError, match="format 2"):
        ServedBatches({**ServedBatches().saved(), "format": 2})
