from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollstream.trainers.groups import GroupKey
from rollstream.trainers.holding import AwaitedGroup, held_for


def awaited(*last_versions: int) -> list[AwaitedGroup]:
    return [AwaitedGroup(GroupKey("run", index), last) for index, last in enumerate(last_versions)]


def indices(groups: list[AwaitedGroup]) -> list[int]:
    return [group.key.group_index for group in groups]


def held(batch: list[float], groups: list[AwaitedGroup], *, version: int = 5, step: int = 1) -> list[int]:
    return indices(held_for(batch, groups, version=version, version_step=step, groups_per_step=2))


def test_a_batch_waits_for_a_group_that_could_not_come_later() -> None:
    assert held([7, 7], awaited(5)) == [0]


def test_a_batch_does_not_wait_for_groups_that_find_a_place_later() -> None:
    assert held([7, 7], awaited(6, 6)) == []


def test_places_are_counted_ahead() -> None:
    assert held([9, 9], awaited(6, 6, 7, 7)) == []
    assert held([9, 9], awaited(6, 7, 7, 7, 7)) == [0, 1, 2, 3, 4], "five for the four places at 6 and 7"


def test_a_batch_of_groups_as_urgent_as_the_open_ones_is_delivered() -> None:
    assert held([5, 5], awaited(5, 5)) == []
    assert held([5, 6], awaited(5)) == [0], "one place is given to a group that can wait"


def test_a_group_that_is_too_old_already_is_not_waited_for() -> None:
    assert held([7, 7], awaited(4)) == []


def test_a_batch_that_raises_the_version_by_more_leaves_fewer_places() -> None:
    assert held([9, 9], awaited(6), step=1) == []
    assert held([9, 9], awaited(6), step=4) == [0]


@given(
    batch=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    last_versions=st.lists(st.integers(0, 8), max_size=8),
    version=st.integers(0, 4),
)
def test_it_waits_exactly_if_places_would_lack_that_waiting_may_free(
    batch: list[int], last_versions: list[int], version: int
) -> None:
    """Against the definition: some version by which more open groups have to come than there are places left."""
    groups_per_batch = len(batch)

    def lacks(limit: int) -> bool:
        needing = sum(version <= last <= limit for last in last_versions)
        return needing > groups_per_batch * (limit - version)

    expected = any(lacks(limit) for limit in range(version, max(batch)))
    waits = held_for(
        [float(last) for last in batch],
        awaited(*last_versions),
        version=version,
        version_step=1,
        groups_per_step=groups_per_batch,
    )
    assert bool(waits) == expected
