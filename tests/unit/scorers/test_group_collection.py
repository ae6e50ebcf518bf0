from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas import ids
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers.group_collection import GroupCollector, Held

Make = Callable[..., Trajectory]


def collector() -> GroupCollector[int]:
    return GroupCollector(deadline_s=10.0)


@given(order=st.permutations(range(3)), copies=st.lists(st.integers(0, 2), max_size=4))
def test_a_group_is_whole_when_the_last_member_comes_whatever_came_twice(
    make: Make, order: list[int], copies: list[int]
) -> None:
    groups, offset = collector(), 0
    arrivals = [*order[:2], *(copy for copy in copies if copy in order[:2]), order[2]]
    bundles = [groups.add(Held(make(0, member), offset := offset + 1), 0.0) for member in arrivals]

    assert bundles[:-1] == [None] * (len(arrivals) - 1)
    whole = bundles[-1]
    assert whole is not None
    assert whole.is_complete
    assert [held.trajectory.member_index for held in whole.members] == [0, 1, 2]
    assert sorted(held.place for held in (*whole.members, *whole.copies)) == list(range(1, len(arrivals) + 1))
    assert len(groups) == 0


def test_members_that_failed_count(make: Make) -> None:
    groups = collector()
    groups.add(Held(make(0, 0), 1), 0.0)
    groups.add(Held(make(0, 1, status="failed"), 2), 0.0)
    assert groups.add(Held(make(0, 2), 3), 0.0) is not None


def test_at_its_deadline_a_group_is_taken_as_it_is_and_a_late_member_is_a_group_of_its_own(make: Make) -> None:
    groups = collector()
    groups.add(Held(make(0, 0), 1), 0.0)
    groups.add(Held(make(1, 0), 2), 5.0)

    assert groups.overdue(9.9) == []
    [due] = groups.overdue(10.0)
    assert not due.is_complete
    assert [held.place for held in due.members] == [1]
    groups.add(Held(make(0, 1), 3), 11.0)
    assert [[held.place for held in late.members] for late in groups.overdue(21.0)] == [[2], [3]]


def test_a_replacement_joins_its_group_or_finds_it_gone_and_waits_for_nobody(make: Make) -> None:
    groups = collector()
    replacement = make(0, 1, replacement=1, trajectory_id=ids.trajectory_id("r", 0, 1, 1))
    groups.add(Held(make(0, 0), 1), 0.0)
    groups.add(Held(make(0, 1, status="failed"), 2), 0.0)
    assert groups.add(Held(replacement, 3), 0.0) is None
    whole = groups.add(Held(make(0, 2), 4), 0.0)
    assert whole is not None
    assert [held.place for held in whole.members] == [1, 2, 3, 4]

    alone = groups.add(Held(replacement, 5), 0.0)
    assert alone is not None
    assert ([held.place for held in alone.members], alone.is_complete) == ([5], False)


def test_without_room_the_group_that_waited_longest_goes_first(make: Make) -> None:
    groups = collector()
    for offset, group in enumerate((4, 2, 9)):
        groups.add(Held(make(group, 0), offset), float(offset))

    first = groups.oldest()
    assert first is not None
    assert first.members[0].trajectory.group_index == 4
    assert len(groups) == 2


def test_what_others_own_now_is_forgotten_and_a_copy_that_stays_takes_its_place(make: Make) -> None:
    groups = collector()
    groups.add(Held(make(0, 0), 1), 0.0)
    groups.add(Held(make(0, 0), 101), 0.0)
    groups.add(Held(make(1, 0), 2), 0.0)

    lost = groups.forget(lambda offset: offset < 100)
    assert sorted(held.place for held in lost) == [1, 2]
    [left] = groups.overdue(10.0)
    assert [held.place for held in left.members] == [101]
    assert left.copies == ()
    assert groups.oldest() is None
