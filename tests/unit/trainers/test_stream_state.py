from __future__ import annotations

import json
from typing import Any, cast

import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.stream_state import DROP_COUNTERS, Counts, PassedOver, PublishedPolicy, StreamState

STATE = StreamState(
    topic="t",
    run_id="run",
    positions={0: 4, 1: 0},
    read_to={0: 9, 1: 0},
    closed={"run": [(0, 3), (5, 6)]},
    lineage=12,
    version=3,
    forks=[(2, 1)],
    policy=PublishedPolicy(uri="/policies/v3", manifest_sha256="ab"),
    counts=Counts(consumed=7, members_excluded={"failed": 2}),
    version_step=4,
    version_groups=32,
    groups_since=8,
    limit_marks=[(32, 0), (48, 4)],
    heard_marks={"run": [(3, 0), (9, 4)]},
    passed_over=PassedOver(ends={0: 9, 1: 4}, emitted={"run": 3}),
)


def test_a_state_survives_json() -> None:
    restored = StreamState.from_dict(json.loads(json.dumps(STATE.to_dict())), topic="t", run_id="run")
    assert restored == STATE


def test_a_state_dict_is_of_plain_types_that_torch_loads_safely() -> None:
    def check(value: Any) -> None:
        assert type(value) in (dict, list, tuple, str, int, type(None))
        if isinstance(value, dict):
            value = list(cast("dict[Any, Any]", value).values())
        for item in cast("list[Any]", value) if isinstance(value, (list, tuple)) else []:
            check(item)

    check(STATE.to_dict())


@pytest.mark.parametrize(("topic", "run_id"), [("other", "run"), ("t", None), ("t", "other")])
def test_a_state_of_another_topic_or_run_is_refused(topic: str, run_id: str | None) -> None:
    with pytest.raises(SettingsError, match="the checkpoint is of topic 't' and run 'run'"):
        StreamState.from_dict(STATE.to_dict(), topic=topic, run_id=run_id)


@pytest.mark.parametrize("state", [{}, {"model": 1}, {**STATE.to_dict(), "positions": [1]}])
def test_something_else_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="this is not a state_dict"):
        StreamState.from_dict(state, topic="t", run_id="run")


def test_a_state_of_a_later_format_is_refused() -> None:
    with pytest.raises(SettingsError, match="format 2"):
        StreamState.from_dict({**STATE.to_dict(), "format": 2}, topic="t", run_id="run")


def state_at(position: int, read_to: int, marks: dict[int, int]) -> StreamState:
    return StreamState(
        topic="t",
        run_id=None,
        positions={0: position},
        read_to={0: read_to},
        closed={},
        lineage=0,
        version=0,
        forks=[],
        policy=None,
        counts=Counts(),
        marks=marks,
    )


def test_reading_begins_one_record_earlier_where_only_that_one_can_show_that_the_log_is_the_same() -> None:
    assert state_at(5, 5, {0: 99}).starts({0: 0}) == {0: 4}
    assert state_at(3, 5, {0: 99}).starts({0: 0}) == {0: 3}, "the marked record is read again anyway"
    assert state_at(5, 5, {0: 99}).starts({0: 5}) == {0: 5}, "it is deleted, which is no loss"
    assert state_at(5, 5, {}).starts({0: 0}) == {0: 5}


def test_the_record_before_the_checkpoint_tells_a_topic_that_was_made_anew() -> None:
    state = state_at(3, 5, {0: 99})
    assert state.is_of_other_log(0, 4, 98)
    assert not state.is_of_other_log(0, 4, 99)
    assert not state.is_of_other_log(0, 3, 98)
    assert not state_at(3, 5, {}).is_of_other_log(0, 4, 98)


def test_a_state_of_a_stream_that_held_nothing_back_yet_is_read() -> None:
    """As it was written before there were marks, filters and seeking."""
    old = STATE.to_dict()
    for name in ("version_step", "version_groups", "groups_since", "limit_marks", "heard_marks", "passed_over"):
        del old[name]
    for name in ("members_excluded", "partial_dropped", "skipped", "batches_held"):
        del old["counts"][name]
    restored = StreamState.from_dict(old, topic="t", run_id="run")
    assert (restored.counts.consumed, restored.counts.groups_dropped) == (7, 0)
    assert (restored.version_step, restored.limit_marks, restored.passed_over) == (1, [], None)


def test_every_reason_to_drop_a_group_is_counted_once() -> None:
    counts = Counts()
    for number, drop in enumerate(DROP_COUNTERS, start=1):
        counts.count_drop(drop, number)
    assert counts.drops() == {drop: number for number, drop in enumerate(DROP_COUNTERS, start=1)}
    assert counts.groups_dropped == sum(range(1, len(DROP_COUNTERS) + 1))
    assert counts.copied().members_excluded is not counts.members_excluded
