from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rollstream.trainers.emission import EmissionHistory


def test_a_group_can_have_begun_when_it_was_first_allowed() -> None:
    history = EmissionHistory()
    for limit, version in ((4, 0), (6, 1), (8, 2)):
        history.note_limit(limit, version)
    assert [history.start_version("run", index) for index in (0, 3, 4, 6, 7)] == [0, 0, 1, 2, 2]
    assert history.start_version("run", 8) is None, "it is not allowed yet"


def test_of_several_runs_counts_when_a_group_was_last_heard_not_to_be_emitted() -> None:
    history = EmissionHistory()
    history.note_limit(100, 0)
    for run_id, groups, version in (("a", 0, 1), ("b", 2, 1), ("a", 5, 3)):
        history.note_heard(run_id, groups, version)
    history.note_version(5)
    history.note_heard("a", 9, 6)
    assert [history.start_version("a", index) for index in (0, 4, 5, 8)] == [1, 1, 5, 5]
    assert history.start_version("a", 9) is None
    assert history.start_version("b", 0) == 0, "it may have been emitted before anything was heard"
    assert history.start_version("c", 0) is None


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=20),
    closed=st.integers(0, 30),
    runs=st.integers(1, 2),
)
def test_what_is_kept_says_the_same_of_every_group_that_is_open(
    steps: list[tuple[int, int]], closed: int, runs: int
) -> None:
    history = EmissionHistory()
    groups = version = 0
    for more, later in steps:
        groups, version = groups + more, version + later
        history.note_limit(groups, version)
        for run in range(runs):
            history.note_heard(f"run{run}", groups, version)
    before = [history.start_version("run0", index) for index in range(closed, 120)]
    history.forget_below({f"run{run}": closed for run in range(runs)})
    kept = json.loads(json.dumps([history.limits(), history.heard()]))
    restored = EmissionHistory(*kept)
    assert [restored.start_version("run0", index) for index in range(closed, 120)] == before
    known = [start for start in before if start is not None]
    assert all(first <= second for first, second in pairwise(known)), "later groups begin later"


def test_only_marks_that_open_groups_need_are_kept() -> None:
    history = EmissionHistory()
    for version in range(100):
        history.note_limit(4 * (version + 2), version)
        history.forget_below({"run": 4 * version})
    assert len(history.limits()) == 2
