from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.groups import GroupAssembler, GroupKey
from rollstream.trainers.intervals import IntervalSet

Make = Callable[..., Trajectory]


def ready_indices(groups: GroupAssembler) -> list[int]:
    return sorted(group.key.group_index for group in groups.ready())


def test_a_group_is_ready_with_its_last_member_whatever_their_status(make_trajectory: Make) -> None:
    groups = GroupAssembler(deadline_s=10)
    assert groups.add(make_trajectory(0, 1), 0, 0, now_s=0) == "counted"
    assert ready_indices(groups) == []
    assert groups.add(make_trajectory(0, 0, is_failed=True), 0, 1, now_s=0) == "completed"
    assert ready_indices(groups) == [0]


def test_the_first_record_with_an_id_wins(make_trajectory: Make) -> None:
    groups = GroupAssembler(deadline_s=10)
    groups.add(make_trajectory(0, 0, worker_id="first"), 0, 0, now_s=0)
    assert groups.add(make_trajectory(0, 0, worker_id="first"), 0, 1, now_s=0) == "duplicate"
    assert groups.add(make_trajectory(0, 0, worker_id="second"), 0, 2, now_s=0) == "unequal_duplicate"
    groups.add(make_trajectory(0, 1), 0, 3, now_s=0)
    [group] = groups.ready()
    assert group.members[0].worker_id == "first"


def test_a_record_of_a_closed_group_is_a_copy_if_the_member_was_there_and_late_if_not(make_trajectory: Make) -> None:
    groups = GroupAssembler(deadline_s=10)
    groups.add(make_trajectory(0, 0), 0, 0, now_s=0)
    groups.expire(now_s=10)
    groups.close(GroupKey("run", 0))
    assert groups.add(make_trajectory(0, 0), 0, 1, now_s=11) == "duplicate"
    assert groups.add(make_trajectory(0, 1), 0, 2, now_s=11) == "late"
    assert ready_indices(groups) == []


def test_a_record_that_contradicts_the_first_of_its_group_changes_nothing(make_trajectory: Make) -> None:
    groups = GroupAssembler(deadline_s=10)
    groups.add(make_trajectory(0, 0, group_size=2), 0, 5, now_s=0)
    with pytest.raises(InvalidMessageError, match="first record of group 0"):
        groups.add(make_trajectory(0, 1, group_size=3), 0, 6, now_s=0)
    assert ready_indices(groups) == []
    assert groups.lowest_offsets() == {0: 5}


def test_the_position_is_the_lowest_offset_of_a_group_that_is_not_closed(make_trajectory: Make) -> None:
    groups = GroupAssembler(deadline_s=10)
    groups.add(make_trajectory(0, 0), 0, 4, now_s=0)
    groups.add(make_trajectory(1, 0), 0, 5, now_s=0)
    groups.add(make_trajectory(1, 1), 0, 6, now_s=0)
    groups.add(make_trajectory(2, 0, group_size=1), 1, 9, now_s=0)
    assert groups.lowest_offsets() == {0: 4, 1: 9}, "ready groups count as well"
    groups.close(GroupKey("run", 1))
    groups.close(GroupKey("run", 2))
    assert groups.lowest_offsets() == {0: 4}
    groups.add(make_trajectory(0, 1), 0, 7, now_s=0)
    groups.close(GroupKey("run", 0))
    assert groups.lowest_offsets() == {}


def test_an_incomplete_group_is_ready_at_its_deadline_and_not_before(make_trajectory: Make) -> None:
    groups = GroupAssembler(deadline_s=10)
    groups.add(make_trajectory(0, 0), 0, 0, now_s=5)
    assert not groups.has_overdue(14.9)
    assert groups.expire(now_s=14.9) == []
    assert ready_indices(groups) == []
    assert groups.has_overdue(15)
    groups.expire(now_s=15)
    assert ready_indices(groups) == [0]


def test_an_emitted_group_of_which_nothing_arrives_is_lost_at_its_deadline(make_trajectory: Make) -> None:
    groups = GroupAssembler(deadline_s=10)
    groups.note_progress(ProducerProgress(run_id="run", groups_emitted=2, group_size=2), now_s=0)
    groups.note_progress(ProducerProgress(run_id="run", groups_emitted=3, group_size=2), now_s=4)
    groups.add(make_trajectory(0, 0), 0, 0, now_s=9)
    groups.add(make_trajectory(0, 1), 0, 1, now_s=9)
    assert groups.expire(now_s=10) == [(GroupKey("run", 1), True)]
    assert groups.expire(now_s=13) == []
    assert groups.expire(now_s=14) == [(GroupKey("run", 2), True)]
    assert groups.add(make_trajectory(2, 0), 0, 2, now_s=20) == "late"


def test_progress_that_is_heard_twice_moves_no_deadline() -> None:
    groups = GroupAssembler(deadline_s=10)
    for now_s in (0, 5, 9):
        groups.note_progress(ProducerProgress(run_id="run", groups_emitted=1, group_size=2), now_s=now_s)
    assert groups.expire(now_s=10) == [(GroupKey("run", 0), True)]


def test_groups_closed_before_the_checkpoint_are_not_lost_again() -> None:
    groups = GroupAssembler(deadline_s=10, closed={"run": IntervalSet([(0, 3)])})
    groups.note_progress(ProducerProgress(run_id="run", groups_emitted=4, group_size=2), now_s=0)
    assert groups.expire(now_s=10) == [(GroupKey("run", 3), True)]


def test_it_is_exhausted_when_all_training_runs_are_finished_and_settled(make_trajectory: Make) -> None:
    groups = GroupAssembler(deadline_s=10)
    assert not groups.is_exhausted(), "no run is known"
    groups.note_progress(ProducerProgress(run_id="run", groups_emitted=1, group_size=2, is_finished=True), now_s=0)
    groups.note_progress(ProducerProgress(run_id="eval", groups_emitted=1, group_size=2, is_train=False), now_s=0)
    groups.add(make_trajectory(0, 0), 0, 0, now_s=0)
    assert not groups.is_exhausted()
    groups.add(make_trajectory(0, 1), 0, 1, now_s=0)
    assert groups.is_exhausted()


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    copies=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=8),
    random=st.randoms(use_true_random=False),
)
def test_in_any_order_with_any_copies_each_group_is_ready_once_with_its_first_records(
    sizes: list[int], copies: list[tuple[int, int]], random: Random, make_trajectory: Make
) -> None:
    members = [(group, member) for group, size in enumerate(sizes) for member in range(size)]
    records = [*members, *(copy for copy in copies if copy in members)]
    random.shuffle(records)
    groups = GroupAssembler(deadline_s=10)
    first: dict[tuple[int, int], str] = {}
    closed: list[int] = []
    for offset, (group, member) in enumerate(records):
        first.setdefault((group, member), f"w{offset}")
        record = make_trajectory(group, member, group_size=sizes[group], worker_id=f"w{offset}")
        if groups.add(record, 0, offset, now_s=0) != "completed":
            continue
        [ready] = groups.ready()
        assert {m: t.worker_id for m, t in ready.members.items()} == {
            m: worker for (g, m), worker in first.items() if g == ready.key.group_index
        }
        groups.close(ready.key)
        closed.append(ready.key.group_index)
    assert sorted(closed) == list(range(len(sizes)))
    assert groups.lowest_offsets() == {}
