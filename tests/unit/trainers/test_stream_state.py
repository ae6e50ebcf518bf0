from __future__ import annotations

import json
from typing import Any, cast

import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.stream_state import Counts, PublishedPolicy, StreamState

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
    counts=Counts(consumed=7),
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
