from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.trajectories import Sample, Trajectory
from rollstream.trainers.adapters.atropos.scored_groups import (
    GroupRules,
    fitting_size,
    members_of,
    refusal,
    scored_group,
)
from rollstream.trainers.batches import TrajectoryGroup

Make = Callable[..., Trajectory]


def group_of(*trajectories: Trajectory) -> TrajectoryGroup:
    first = trajectories[0]
    return TrajectoryGroup(first.run_id, first.group_id, first.group_index, first.group_size, trajectories)


def two_turns(prompt: list[int]) -> Sample:
    return Sample(
        prompt_ids=np.array(prompt, dtype=np.int32),
        response_ids=np.array([10, 11, 20, 12], dtype=np.int32),
        response_mask=np.array([1, 1, 0, 1], dtype=np.uint8),
        response_logprobs=np.array([-0.5, -0.25, 0.0, -0.125], dtype=np.float32),
        version_spans=[],
        turns=[],
    )


def scored(group: TrajectoryGroup, rules: GroupRules | None = None) -> dict[str, Any]:
    return scored_group(group, members_of(group), rules or GroupRules(), env_id=5)


def test_labels_are_minus_100_and_logprobs_1_wherever_the_policy_did_not_sample(make_trajectory: Make) -> None:
    trajectory = make_trajectory(0, 0, reward=0.5)
    trajectory.samples[:] = [two_turns([1, 2])]
    data = scored(group_of(trajectory))
    assert data["tokens"] == [[1, 2, 10, 11, 20, 12]]
    assert data["masks"] == [[-100, -100, 10, 11, -100, 12]]
    assert data["inference_logprobs"] == [[1.0, 1.0, -0.5, -0.25, 1.0, -0.125]]
    assert (data["scores"], data["env_id"]) == ([0.5], 5)


def test_the_message_has_every_key_of_the_servers_own_model_and_is_json(make_trajectory: Make) -> None:
    server = pytest.importorskip("atroposlib.api.server", reason="atroposlib is not installed")
    data = scored(group_of(make_trajectory(0, 0), make_trajectory(0, 1)))
    assert set(data) == set(server.ScoredData.model_fields)
    read = server.ScoredData.model_validate_json(json.dumps(data))
    assert read.model_dump() == data


def test_where_a_sequence_came_from_travels_beside_it(make_trajectory: Make) -> None:
    group = group_of(make_trajectory(3, 0, version=4), make_trajectory(3, 1, version=6))
    data = scored(group)
    assert [facts["policy_version_min"] for facts in data["overrides"]] == [4, 6]
    assert (data["group_overrides"]["policy_version_min"], data["group_overrides"]["policy_version_max"]) == (4, 6)
    assert data["group_overrides"]["group_index"] == 3


def test_each_member_has_the_temperature_that_it_was_sampled_with(make_trajectory: Make) -> None:
    cold, warm = make_trajectory(0, 0), make_trajectory(0, 1)
    warm = msgspec.structs.replace(warm, sampling=msgspec.structs.replace(warm.sampling, temperature=1.5))
    data = scored(group_of(cold, warm))
    assert [facts["temperature"] for facts in data["overrides"]] == [1.0, 1.5]
    assert data["generation_params"]["temperature"] == 1.0


def test_truncated_members_are_muted_when_asked(make_trajectory: Make) -> None:
    cut = msgspec.structs.replace(make_trajectory(0, 1), status="truncated")
    group = group_of(make_trajectory(0, 0), cut)
    muted = scored(group, GroupRules(mutes_truncated=True))
    assert [facts.get("set_advantage_to_zero") for facts in muted["overrides"]] == [None, True]
    assert all("set_advantage_to_zero" not in facts for facts in scored(group)["overrides"])


def test_a_trajectory_of_several_samples_is_one_member_by_its_last_trainable_one(make_trajectory: Make) -> None:
    trajectory = make_trajectory(0, 0)
    unusable = msgspec.structs.replace(two_turns([9]), is_trainable=False)
    trajectory.samples[:] = [two_turns([1]), two_turns([1, 2, 3]), unusable]
    [member] = members_of(group_of(trajectory))
    assert member.sample.prompt_ids.tolist() == [1, 2, 3]


def test_groups_no_trainer_could_use_are_refused_with_the_reason(make_trajectory: Make) -> None:
    def reason(*members: Trajectory, **rules: Any) -> str | None:
        return refusal(members_of(group_of(*members)), GroupRules(**rules))

    good, bad = make_trajectory(0, 0, reward=1.0), make_trajectory(0, 1, reward=0.0)
    assert reason(good, bad) is None
    assert reason(good, good) == "equal_scores"
    assert reason(good, good, keeps_equal_scores=True) is None
    assert reason(good, make_trajectory(0, 1, reward=None)) == "unscored"
    assert reason(good, bad, max_token_len=5) == "too_long"
    assert reason(good, bad, max_token_len=6) is None
    assert reason(make_trajectory(0, 0, is_trainable=False)) == "incomplete"


def test_a_member_without_a_reward_is_never_scored_0(make_trajectory: Make) -> None:
    with pytest.raises(InvalidMessageError, match="has no reward"):
        scored(group_of(make_trajectory(0, 0, reward=None)))


@given(
    group_size=st.sampled_from([2, 4, 8]),
    per_batch=st.integers(1, 4),
    arrived=st.lists(st.integers(0, 8), min_size=1, max_size=12),
    keeps_incomplete=st.booleans(),
)
def test_what_is_pushed_is_always_packed_by_the_servers_own_arithmetic(
    group_size: int, per_batch: int, arrived: list[int], keeps_incomplete: bool
) -> None:
    """With as many further complete groups as it takes, no group stays in the server for ever."""
    packing = pytest.importorskip("atroposlib.api.utils", reason="atroposlib is not installed")
    batch_size = group_size * per_batch
    rules = GroupRules(keeps_incomplete=keeps_incomplete)
    sizes = [fitting_size(min(count, group_size), group_size, batch_size, rules) for count in arrived]
    pushed = [size for size in sizes if size]
    assert all(size <= min(count, group_size) for size, count in zip(sizes, arrived, strict=True))
    queue: list[dict[str, Any]] = [{"tokens": [[0]] * size, "env_id": 0} for size in pushed]
    smaller = {size: pushed.count(size) for size in set(pushed) if size < group_size}
    queue += [{"tokens": [[0]] * size, "env_id": 0} for size, n in smaller.items() for _ in range(-n % batch_size)]
    total = sum(len(group["tokens"]) for group in queue)
    queue += [{"tokens": [[0]] * group_size, "env_id": 0}] * (-(total // -group_size) % per_batch)
    batches: list[Any] = []
    while True:
        batch, queue = packing.grab_exact_from_heterogeneous_queue(queue, batch_size)
        if batch is None:
            break
        batches.append(batch)
        assert sum(len(group["tokens"]) for group in batch) == batch_size
    assert sum(len(group["tokens"]) for group in queue) < batch_size


def test_a_group_that_can_never_be_packed_is_left_out() -> None:
    assert fitting_size(3, 3, 9, GroupRules()) == 3
    assert fitting_size(3, 3, 8, GroupRules()) == 0
    assert fitting_size(3, 4, 8, GroupRules()) == 0
    assert fitting_size(3, 4, 8, GroupRules(keeps_incomplete=True)) == 2
    assert fitting_size(5, 6, 12, GroupRules(keeps_incomplete=True)) == 0
    assert fitting_size(1, 4, 8, GroupRules(keeps_incomplete=True)) == 0
