from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup

Make = Callable[..., Trajectory]


def group_of(*trajectories: Trajectory) -> TrajectoryGroup:
    first = trajectories[0]
    return TrajectoryGroup(first.run_id, first.group_id, first.group_index, first.group_size, trajectories)


def two_turns() -> Sample:
    return Sample(
        prompt_ids=np.array([1, 2], dtype=np.int32),
        response_ids=np.array([10, 11, 20, 12], dtype=np.int32),
        response_mask=np.array([1, 1, 0, 1], dtype=np.uint8),
        response_logprobs=np.array([-0.1, -0.2, 0.0, -0.3], dtype=np.float32),
        version_spans=[VersionSpan(0, 2, 4), VersionSpan(3, 4, 5)],
        turns=[],
    )


def test_rows_are_prompt_response_and_padding_with_everything_at_the_token_it_belongs_to(make_trajectory: Make) -> None:
    long = make_trajectory(0, 0, reward=0.5)
    long.samples[:] = [two_turns()]
    short = make_trajectory(1, 0, tokens=1, version=3, reward=None)
    padded = TrainingBatch(0, 1, 5, (group_of(long), group_of(short))).to_padded(99)

    assert padded.input_ids.tolist() == [[1, 2, 10, 11, 20, 12], [1, 2, 3, 100, 99, 99]]
    assert padded.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert padded.response_mask.tolist() == [[0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 0, 0]]
    expected = np.array([[0, 0, -0.1, -0.2, 0, -0.3], [0, 0, 0, -0.5, 0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(padded.logprobs, expected)
    assert padded.versions.tolist() == [[-1, -1, 4, 4, -1, 5], [-1, -1, -1, 3, -1, -1]]
    np.testing.assert_array_equal(padded.rewards, np.array([0.5, np.nan], dtype=np.float32))
    assert (padded.groups.tolist(), padded.members.tolist()) == ([0, 1], [0, 0])


def test_every_trainable_sample_is_a_row_that_knows_its_trajectory(make_trajectory: Make) -> None:
    first, second = make_trajectory(0, 0), make_trajectory(0, 1)
    second.samples[:] = [*make_trajectory(0, 1, is_trainable=False).samples, two_turns(), two_turns()]
    padded = TrainingBatch(0, 1, 0, (group_of(first, second),)).to_padded(0)
    assert padded.groups.tolist() == [0, 0, 0]
    assert padded.members.tolist() == [0, 1, 1]


def test_dtypes_are_what_torch_takes(make_trajectory: Make) -> None:
    padded = TrainingBatch(0, 1, 0, (group_of(make_trajectory(0, 0)),)).to_padded(0)
    assert padded.input_ids.dtype == padded.attention_mask.dtype == np.int64
    assert padded.logprobs.dtype == padded.rewards.dtype == np.float32
    assert padded.input_ids.flags.writeable


def test_rewards_of_a_group_are_an_array_with_nan_for_none(make_trajectory: Make) -> None:
    rewards = group_of(make_trajectory(0, 0, reward=0.25), make_trajectory(0, 1, reward=None)).rewards
    np.testing.assert_array_equal(rewards, np.array([0.25, np.nan], dtype=np.float32))
