"""What a trainer gets: batches of groups of trajectories, ragged as they were sampled, or padded into rectangles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rollstream.schemas.trajectories import Sample, Trajectory


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """All members of one prompt that arrived in time.

    Attributes:
        trajectories: trainable members by ``member_index``; each has a trainable sample and, unless the stream was
            told otherwise, a reward.
        excluded: members that are there but not trainable: failed, unscored or without a trainable sample.
        staleness: age in policy versions of the oldest sampled token when the group was delivered; None if a token is
            of a lineage that is not among the trainer's ancestors (delivered only without an age limit).
    """

    run_id: str
    group_id: str
    group_index: int
    group_size: int
    trajectories: tuple[Trajectory, ...]
    excluded: tuple[Trajectory, ...] = ()
    staleness: int | None = 0

    @property
    def rewards(self) -> NDArray[np.float32]:
        """float32 [len(trajectories)]; NaN where a trajectory has none."""
        return np.array([np.nan if t.reward is None else t.reward for t in self.trajectories], dtype=np.float32)

    @property
    def sampled_tokens(self) -> NDArray[np.int64]:
        """int64 [len(trajectories)]; tokens in trainable samples that the policy sampled."""
        return np.array(
            [sum(int(s.response_mask.sum()) for s in t.samples if s.is_trainable) for t in self.trajectories],
            dtype=np.int64,
        )


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """N samples in rectangles, padded on the right to the longest, T = max(P + R). Row order: group, member, sample.

    Attributes:
        input_ids: int64 [N, T]; prompt, response, then ``pad_token_id``.
        attention_mask: int64 [N, T]; 1 on prompt and response.
        response_mask: uint8 [N, T]; 1 where ``input_ids`` was sampled by the policy.
        logprobs: float32 [N, T]; natural log of the probability of the token at the same place under the distribution
            it was drawn from; 0.0 where ``response_mask`` is 0.
        versions: int32 [N, T]; the policy version that sampled the token, -1 where ``response_mask`` is 0.
        rewards: float32 [N]; of the row's trajectory, NaN if it has none.
        groups: int32 [N]; place of the row's group in ``batch.groups``.
        members: int32 [N]; place of the row's trajectory in ``batch.groups[groups[n]].trajectories``.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    response_mask: NDArray[np.uint8]
    logprobs: NDArray[np.float32]
    versions: NDArray[np.int32]
    rewards: NDArray[np.float32]
    groups: NDArray[np.int32]
    members: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Complete groups, the one that would be too old first at the front.

    Attributes:
        number: 0, 1, 2, … over the whole history of the stream, restarts included.
        version: the trainer's policy version when the batch was delivered.
    """

    number: int
    lineage: int
    version: int
    groups: tuple[TrajectoryGroup, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def trajectories(self) -> Iterator[Trajectory]:
        """All trainable trajectories, group by group."""
        return (trajectory for group in self.groups for trajectory in group.trajectories)

    def to_padded(self, pad_token_id: int) -> PaddedBatch:
        """Copy all trainable samples into rectangles (see ``PaddedBatch`` for shapes)."""
        rows = list(self._rows())
        length = max((len(s.prompt_ids) + len(s.response_ids) for _, _, _, s in rows), default=0)
        shape = (len(rows), length)
        padded = PaddedBatch(
            input_ids=np.full(shape, pad_token_id, dtype=np.int64),
            attention_mask=np.zeros(shape, dtype=np.int64),
            response_mask=np.zeros(shape, dtype=np.uint8),
            logprobs=np.zeros(shape, dtype=np.float32),
            versions=np.full(shape, -1, dtype=np.int32),
            rewards=np.array([np.nan if t.reward is None else t.reward for _, _, t, _ in rows], dtype=np.float32),
            groups=np.array([group for group, _, _, _ in rows], dtype=np.int32),
            members=np.array([member for _, member, _, _ in rows], dtype=np.int32),
        )
        for row, (_, _, _, sample) in enumerate(rows):
            start = len(sample.prompt_ids)
            end = start + len(sample.response_ids)
            padded.input_ids[row, :start] = sample.prompt_ids
            padded.input_ids[row, start:end] = sample.response_ids
            padded.attention_mask[row, :end] = 1
            padded.response_mask[row, start:end] = sample.response_mask
            padded.logprobs[row, start:end] = np.where(sample.response_mask, sample.response_logprobs, 0)
            padded.versions[row, start:end] = sample.response_versions
        return padded

    def _rows(self) -> Iterator[tuple[int, int, Trajectory, Sample]]:
        for group_place, group in enumerate(self.groups):
            for member_place, trajectory in enumerate(group.trajectories):
                for sample in trajectory.samples:
                    if sample.is_trainable:
                        yield group_place, member_place, trajectory, sample
