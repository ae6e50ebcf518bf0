from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.ids import call_id, group_id, group_partition, session_id, trajectory_id


def test_ids_are_the_same_on_every_machine_and_in_every_release() -> None:
    assert group_id("run", 0) == "775137caf21ef090523e995e7cb864fe"
    assert trajectory_id("run", 0, 1) == "8055df6c7fb31e917d51a7f4f25022bc"
    assert session_id("t", 7, "0") == "ead1a4b960ea6748d9e88e8935c01d5e"
    assert call_id("t", 7, "3.0.1", 2, "{}") == "15d8a66cb47e62d17381576506efacfa"
    assert group_partition(group_id("run", 0), 16) == 10


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 20), st.integers(0, 20)), min_size=2, unique=True))
def test_different_tasks_have_different_ids(tasks: list[tuple[str, int, int]]) -> None:
    assert len({trajectory_id(*task) for task in tasks}) == len(tasks)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_every_replacement_of_a_member_has_an_id_of_its_own(group: int, member: int, replacements: int) -> None:
    assert trajectory_id("run", group, member, 0) == trajectory_id("run", group, member)
    assert len({trajectory_id("run", group, member, number) for number in range(replacements + 1)}) == replacements + 1


def test_parts_do_not_run_into_one_another() -> None:
    assert trajectory_id("run1", 1, 1) != trajectory_id("run", 11, 1) != trajectory_id("run", 1, 11)
    assert session_id("t", 1, "2") != session_id("t", 12, "")


def test_groups_spread_evenly_over_partitions() -> None:
    counts = Counter(group_partition(group_id("run", index), 16) for index in range(16_000))
    assert set(counts) == set(range(16))
    assert max(counts.values()) < 1_150
