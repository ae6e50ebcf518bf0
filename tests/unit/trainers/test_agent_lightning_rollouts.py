from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.trajectories import Sample, Trajectory, Turn, VersionSpan
from rollstream.trainers.adapters.agent_lightning.rollouts import events, failure, generations, rollout, rollout_id

Make = Callable[..., Trajectory]


def sample_of(mask: list[int], turns: list[tuple[int, int]] | None = None, prompt: int = 2) -> Sample:
    size = len(mask)
    sampled = np.array(mask, dtype=np.uint8)
    return Sample(
        prompt_ids=np.arange(1, prompt + 1, dtype=np.int32),
        response_ids=np.arange(10, 10 + size, dtype=np.int32),
        response_mask=sampled,
        response_logprobs=(-np.arange(1, size + 1) / 8 * sampled).astype(np.float32),
        version_spans=[VersionSpan(start, end, 3 + place) for place, (start, end) in enumerate(turns or [])],
        turns=[Turn(start=start, end=end, finish_reason="stop") for start, end in turns or []],
    )


def choice(event: dict[str, Any]) -> dict[str, Any]:
    return event["data"]["response"]["choices"][0]


def test_each_generation_shows_the_whole_context_and_what_was_sampled_from_it(make_trajectory: Make) -> None:
    trajectory = make_trajectory(0, 0, reward=0.5)
    trajectory.samples[:] = [sample_of([1, 1, 0, 1], [(0, 2), (3, 4)])]
    first, second, reward = events(trajectory)
    assert first["data"]["response"]["prompt_token_ids"] == [1, 2]
    assert (choice(first)["token_ids"], choice(second)["token_ids"]) == ([10, 11], [13])
    assert second["data"]["response"]["prompt_token_ids"] == [1, 2, 10, 11, 12]
    assert [part["logprob"] for part in choice(first)["logprobs"]["content"]] == [-0.125, -0.25]
    assert [event["data"]["server"]["version"] for event in (first, second)] == [3, 4]
    assert (reward["event_type"], reward["data"]["value"]) == ("reward", 0.5)
    assert json.loads(json.dumps(events(trajectory), allow_nan=False)) == events(trajectory)


@given(mask=st.lists(st.integers(0, 1), min_size=1, max_size=12), cuts=st.sets(st.integers(0, 11)))
def test_every_sampled_token_is_in_one_generation_and_no_other_token_is(mask: list[int], cuts: set[int]) -> None:
    sample = sample_of(mask)
    turns = [Turn(start=cut, end=cut + 1, finish_reason="stop") for cut in sorted(cuts)]
    spans = list(generations(msgspec.structs.replace(sample, turns=turns)))
    covered = [place for start, end in spans for place in range(start, end)]
    assert covered == [place for place, sampled in enumerate(mask) if sampled]
    assert all(not cuts & set(range(start + 1, end)) for start, end in spans)


def test_a_trajectory_answers_the_rollout_that_its_task_names(make_trajectory: Make) -> None:
    trajectory = make_trajectory(0, 0)
    assert rollout_id(trajectory) == rollout(trajectory)["rollout_id"] == trajectory.trajectory_id
    named = msgspec.structs.replace(trajectory, extra={"rollout_id": "r7"})
    assert rollout_id(named) == rollout(named)["rollout_id"] == "r7"
    assert rollout(named)["input"]["data_id"] == trajectory.group_id


def test_what_failed_or_was_not_scored_is_a_failure_and_never_reward_0(make_trajectory: Make) -> None:
    assert failure(make_trajectory(0, 0)) is None
    assert failure(make_trajectory(0, 0, is_failed=True)) == "EngineError: died"
    assert failure(make_trajectory(0, 0, reward=None)) == "not scored"
    assert failure(make_trajectory(0, 0, is_trainable=False)) == "no trainable sample"
    assert [event["event_type"] for event in events(make_trajectory(0, 0, reward=None))] == ["model_request"]
