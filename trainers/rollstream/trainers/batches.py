"""What a trainer gets: batches of groups of trajectories, ragged as sampled, padded into rectangles, or packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Sample, Trajectory
from rollstream.trainers.advantages import Estimator, batch_advantages
from rollstream.trainers.packing import Overlong, PackedBatch, PackedRow, plan_rows

Exclusion = Literal["failed", "untrainable", "unscored", "truncated", "overlong"]
"""Why a member is not trained on: it failed, has no trainable sample, no reward, was cut, or is too long."""


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """All members of one prompt that arrived in time.

    Attributes:
        trajectories: trainable members by ``member_index``; each has a trainable sample and, unless the stream was
            told otherwise, a reward.
        excluded: members that are there but not trained on.
        exclusions: why, one reason per member of ``excluded``.
        staleness: age in policy versions of the oldest sampled token when the group was delivered; None if a token is
            of a lineage that is not among the trainer's ancestors (delivered only without an age limit).
    """

    run_id: str
    group_id: str
    group_index: int
    group_size: int
    trajectories: tuple[Trajectory, ...]
    excluded: tuple[Trajectory, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
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
        response_mask: uint8 [N, T]; 1 where ``input_ids`` was sampled by the policy; never in column 0.
        logprobs: float32 [N, T]; natural log of the probability of the token at the same place under the distribution
            it was drawn from; 0.0 where ``response_mask`` is 0.
        versions: int32 [N, T]; the policy version that sampled the token, -1 where ``response_mask`` is 0.
        rewards: float32 [N]; of the row's trajectory, NaN if it has none.
        groups: int32 [N]; place of the row's group in ``batch.groups``.
        members: int32 [N]; place of the row's trajectory in ``batch.groups[groups[n]].trajectories``.
        samples: int32 [N]; place of the row's sample in the trajectory's ``samples``.
        advantages: float32 [N]; of the row's trajectory, if they were asked for.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    response_mask: NDArray[np.uint8]
    logprobs: NDArray[np.float32]
    versions: NDArray[np.int32]
    rewards: NDArray[np.float32]
    groups: NDArray[np.int32]
    members: NDArray[np.int32]
    samples: NDArray[np.int32]
    advantages: NDArray[np.float32] | None = None


class BatchSample(NamedTuple):
    """A trainable sample and where it is: the places of its group, its trajectory there, and itself among its own."""

    group: int
    member: int
    place: int
    trajectory: Trajectory
    sample: Sample

    @property
    def tokens(self) -> int:
        """Length of prompt and response together."""
        return len(self.sample.prompt_ids) + len(self.sample.response_ids)


Advantages = str | Estimator | Sequence[NDArray[np.float32]]
"""An estimator or its name; or, per group, a float32 [members] of one's own."""


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

    def samples(self) -> Iterator[BatchSample]:
        """All trainable samples, group by group, member by member."""
        for group_place, group in enumerate(self.groups):
            for member_place, trajectory in enumerate(group.trajectories):
                for place, sample in enumerate(trajectory.samples):
                    if sample.is_trainable:
                        yield BatchSample(group_place, member_place, place, trajectory, sample)

    def to_padded(self, pad_token_id: int, *, advantages: Advantages | None = None) -> PaddedBatch:
        """Copy all trainable samples into rectangles (see ``PaddedBatch`` for shapes).

        Raises:
            SettingsError: ``advantages`` names no estimator, or has not the shapes of the groups.
        """
        rows = list(self.samples())
        shape = (len(rows), max((row.tokens for row in rows), default=0))
        padded = PaddedBatch(
            input_ids=np.full(shape, pad_token_id, dtype=np.int64),
            attention_mask=np.zeros(shape, dtype=np.int64),
            response_mask=np.zeros(shape, dtype=np.uint8),
            logprobs=np.zeros(shape, dtype=np.float32),
            versions=np.full(shape, -1, dtype=np.int32),
            rewards=_rewards(rows),
            groups=np.array([row.group for row in rows], dtype=np.int32),
            members=np.array([row.member for row in rows], dtype=np.int32),
            samples=np.array([row.place for row in rows], dtype=np.int32),
            advantages=self._advantages(rows, advantages),
        )
        for place, row in enumerate(rows):
            padded.attention_mask[place, : row.tokens] = 1
            _lay_out(row.sample, padded, (place, slice(None)))
        return padded

    def to_packed(
        self,
        max_tokens: int,
        *,
        overlong: Overlong = "error",
        min_rows: int = 0,
        advantages: Advantages | None = None,
    ) -> PackedBatch:
        """Copy all trainable samples into rows of at most ``max_tokens`` without padding (see ``PackedRow``).

        Args:
            max_tokens: room of a row, for whole samples only.
            overlong: a longer sample is an ``error``, or goes ``alone`` into a longer row of its own.
            min_rows: rows to make at least, if need be by parting the fullest, and empty ones when samples are fewer;
                data-parallel ranks make the same number of steps with it.
            advantages: an estimator, its name, or one's own, per group a float32 [members].

        Raises:
            SettingsError: a sample is too long (it is named), or ``advantages`` does not fit.
        """
        rows = list(self.samples())
        lengths = [row.tokens for row in rows]
        try:
            plan = plan_rows(lengths, max_tokens, overlong=overlong, min_rows=min_rows)
        except SettingsError as error:
            longest = max(rows, key=lambda row: row.tokens, default=None)
            if longest is None or longest.tokens <= max_tokens:
                raise
            raise SettingsError(f"trajectory {longest.trajectory.trajectory_id!r}: {error}") from error
        chosen_advantages = self._advantages(rows, advantages)
        return PackedBatch(
            tuple(_packed_row([rows[place] for place in row], row, chosen_advantages) for row in plan), max_tokens
        )

    def _advantages(self, rows: list[BatchSample], advantages: Advantages | None) -> NDArray[np.float32] | None:
        """float32 [N], from those of the trajectories."""
        if advantages is None:
            return None
        if isinstance(advantages, (str, Estimator)):
            advantages = batch_advantages(self, advantages)
        shapes, wanted = [len(a) for a in advantages], [len(group.trajectories) for group in self.groups]
        if shapes != wanted:
            raise SettingsError(f"advantages of {shapes} members for groups of {wanted}: one for each trajectory")
        return np.array([advantages[row.group][row.member] for row in rows], dtype=np.float32)


class _TokenArrays(Protocol):
    """What a padded batch and a packed row have in common."""

    @property
    def input_ids(self) -> NDArray[np.int64]: ...
    @property
    def response_mask(self) -> NDArray[np.uint8]: ...
    @property
    def logprobs(self) -> NDArray[np.float32]: ...
    @property
    def versions(self) -> NDArray[np.int32]: ...


def _lay_out(sample: Sample, arrays: _TokenArrays, place: tuple[int, slice] | slice) -> None:
    """Write a sample to the beginning of ``place``."""
    start = len(sample.prompt_ids)
    end = start + len(sample.response_ids)
    arrays.input_ids[place][:start] = sample.prompt_ids
    arrays.input_ids[place][start:end] = sample.response_ids
    arrays.response_mask[place][start:end] = sample.response_mask
    arrays.logprobs[place][start:end] = np.where(sample.response_mask, sample.response_logprobs, 0)
    arrays.versions[place][start:end] = sample.response_versions


def _packed_row(samples: list[BatchSample], places: list[int], advantages: NDArray[np.float32] | None) -> PackedRow:
    lengths = [row.tokens for row in samples]
    total = sum(lengths)
    packed = PackedRow(
        input_ids=np.zeros(total, dtype=np.int64),
        position_ids=np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(length) for length in lengths)]),
        response_mask=np.zeros(total, dtype=np.uint8),
        logprobs=np.zeros(total, dtype=np.float32),
        versions=np.full(total, -1, dtype=np.int32),
        cu_seqlens=np.cumsum([0, *lengths], dtype=np.int32),
        rewards=_rewards(samples),
        groups=np.array([row.group for row in samples], dtype=np.int32),
        members=np.array([row.member for row in samples], dtype=np.int32),
        samples=np.array([row.place for row in samples], dtype=np.int32),
        advantages=None if advantages is None else advantages[places],
    )
    for start, row in zip(packed.cu_seqlens, samples, strict=False):
        _lay_out(row.sample, packed, slice(int(start), None))
    return packed


def _rewards(rows: list[BatchSample]) -> NDArray[np.float32]:
    rewards = (row.trajectory.reward for row in rows)
    return np.array([np.nan if reward is None else reward for reward in rewards], dtype=np.float32)
