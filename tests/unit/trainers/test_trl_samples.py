# trl is only partly annotated
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tasks import SamplingParams
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers.adapters.handed_out import SampleKey
from rollstream.trainers.adapters.trl_samples import (
    RolloutSample,
    check_sampling,
    filling,
    rollout_samples,
    trl_version,
)
from rollstream.trainers.batches import TrajectoryGroup

Make = Callable[..., Trajectory]


def group_of(*trajectories: Trajectory, staleness: int | None = 0) -> TrajectoryGroup:
    first = trajectories[0]
    return TrajectoryGroup(
        first.run_id, first.group_id, first.group_index, first.group_size, trajectories, staleness=staleness
    )


def with_sample(trajectory: Trajectory, *samples: Sample) -> Trajectory:
    return msgspec.structs.replace(trajectory, samples=list(samples))


TWO_TURNS = Sample(
    prompt_ids=np.array([1, 2], dtype=np.int32),
    response_ids=np.array([10, 11, 20, 12], dtype=np.int32),
    response_mask=np.array([1, 1, 0, 1], dtype=np.uint8),
    response_logprobs=np.array([-0.1, -0.2, 0.0, -0.3], dtype=np.float32),
    version_spans=[VersionSpan(0, 2, 4), VersionSpan(3, 4, 5)],
    turns=[],
)


def test_a_sample_is_the_whole_sequence_with_everything_at_its_own_token(make_trajectory: Make) -> None:
    first, second = with_sample(make_trajectory(0, 0, reward=1.0), TWO_TURNS), make_trajectory(0, 1, reward=0.0)
    samples = rollout_samples(group_of(first, second, staleness=2), [0.5, -0.5], group_id=7, model_version=3)
    sample = samples[0]
    assert sample.input_ids.tolist() == [1, 2, 10, 11, 20, 12]
    assert sample.completion_mask.tolist() == [0, 0, 1, 1, 0, 1]
    np.testing.assert_array_equal(sample.old_log_probs, np.array([0, 0, -0.1, -0.2, 0, -0.3], dtype=np.float32))
    assert (sample.input_ids.dtype, sample.completion_mask.dtype, sample.old_log_probs.dtype) == (
        np.int64,
        np.int64,
        np.float32,
    )
    assert [s.advantage for s in samples] == [0.5, -0.5]
    assert {(s.group_id, s.model_version) for s in samples} == {(7, 3)}
    assert sample.metrics["reward"] == 1.0
    assert sample.metrics["reward_std"] == 0.5
    assert sample.metrics["rollstream/staleness"] == 2.0


def test_all_trainable_samples_of_a_trajectory_share_its_advantage(make_trajectory: Make) -> None:
    unusable = msgspec.structs.replace(TWO_TURNS, is_trainable=False)
    trajectory = with_sample(make_trajectory(0, 0), TWO_TURNS, unusable, TWO_TURNS)
    samples = rollout_samples(group_of(trajectory), [0.25], group_id=0, model_version=0)
    assert [s.advantage for s in samples] == [0.25, 0.25]
    assert [s.metrics.key for s in samples] == [
        SampleKey(trajectory.trajectory_id, 0),
        SampleKey(trajectory.trajectory_id, 2),
    ]


@given(
    staleness=st.integers(0, 20), steps_per_sync=st.integers(1, 5), limit=st.integers(0, 10), syncs=st.integers(0, 20)
)
def test_trl_drops_by_its_limit_in_syncs(staleness: int, steps_per_sync: int, limit: int, syncs: int) -> None:
    lag = syncs - trl_version(syncs, staleness, steps_per_sync)
    assert (lag > limit) == (staleness > limit * steps_per_sync)
    assert trl_version(syncs, None, steps_per_sync) == syncs


def test_filling_trains_one_token_without_advantage_and_never_twice_the_same_beginning() -> None:
    first, second = filling(0, length=0, model_version=2), filling(1, length=8, model_version=2)
    assert (len(first.input_ids), len(second.input_ids)) == (2, 8)
    assert first.advantage == second.advantage == 0.0
    assert first.completion_mask.sum() == second.completion_mask.sum() == 1
    assert first.completion_mask[0] == second.completion_mask[0] == 0
    assert first.input_ids[0] != second.input_ids[0]
    assert first.group_id != second.group_id


def test_a_trajectory_that_trl_would_score_differently_is_refused(make_trajectory: Make) -> None:
    trajectory = msgspec.structs.replace(make_trajectory(0, 0), sampling=SamplingParams(temperature=0.7))
    check_sampling(trajectory, 0.7)
    with pytest.raises(SettingsError, match=r"AsyncGRPOConfig\(temperature=0\.7\)"):
        check_sampling(trajectory, 1.0)
    with pytest.raises(SettingsError, match="raw_logprobs"):
        check_sampling(msgspec.structs.replace(trajectory, logprobs_mode="raw_logprobs"), 0.7)


def test_the_attributes_are_those_of_trls_own_class() -> None:
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name("experimental") / "async_grpo" / "async_rollout_worker.py"
    theirs = next(
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "RolloutSample"
    )
    names = {
        node.target.id for node in theirs.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert names == {field.name for field in fields(RolloutSample)}
