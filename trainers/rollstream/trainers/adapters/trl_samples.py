"""Groups of trajectories in the layout of TRL's ``AsyncGRPOTrainer``. Pure; knows neither TRL nor torch.

TRL takes whole sequences, not shifted: element ``i`` of every array belongs to token ``i``, the prompt included. The
advantage is the producer's business; all samples of a trajectory share it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Sample, Trajectory
from rollstream.trainers.adapters.handed_out import SampleKey
from rollstream.trainers.batches import TrajectoryGroup


class SampleMetrics(dict[str, float]):
    """What TRL logs of a sample. TRL passes the object on as it is, so it also says which sample it is of."""

    def __init__(self, key: SampleKey, values: Mapping[str, float]) -> None:
        super().__init__(values)
        self.key = key


@dataclass(slots=True, kw_only=True)
class RolloutSample:
    """One training sequence of T tokens, with the attributes of TRL's class of this name.

    Attributes:
        prompt, completion: messages that TRL shows in its traces; trajectories carry token ids only, so they are empty.
        input_ids: int64 [T]; prompt and response.
        completion_mask: int64 [T]; 1 where the token was sampled by the policy; never at place 0.
        old_log_probs: float32 [T]; natural log of the probability under the distribution the token was drawn from; 0.0
            where the mask is 0.
        advantage: of the trajectory within its group.
        model_version: TRL's count of weight syncs when the oldest token was drawn, see ``trl_version``.
        group_id: a number of the group, unique within one trainer start.
        metrics: logged by TRL as means over samples: the reward, its parts, turns, staleness.
        enqueued_at: Unix seconds.
    """

    input_ids: NDArray[np.int64]
    completion_mask: NDArray[np.int64]
    old_log_probs: NDArray[np.float32]
    advantage: float
    model_version: int
    group_id: int
    metrics: SampleMetrics
    enqueued_at: float | None = None
    prompt: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    completion: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def rollout_samples(
    group: TrajectoryGroup, advantages: Sequence[float] | NDArray[np.float32], *, group_id: int, model_version: int
) -> list[RolloutSample]:
    """The trainable samples of a group by member and sample; ``advantages`` has one for each of its trajectories."""
    return [
        _rollout_sample(trajectory, index, float(advantage), group, group_id, model_version)
        for trajectory, advantage in zip(group.trajectories, advantages, strict=True)
        for index, sample in enumerate(trajectory.samples)
        if sample.is_trainable
    ]


def trl_version(sync_count: int, staleness: int | None, steps_per_sync: int) -> int:
    """What TRL shall take a group's version for, so that TRL's own ``max_staleness`` counts what it means: syncs.

    Policy versions here are optimizer steps. ``staleness`` None (of another lineage, without an age limit): the newest.
    """
    return sync_count - math.ceil((staleness or 0) / steps_per_sync)


def filling(number: int, *, length: int, model_version: int) -> RolloutSample:
    """A sequence without effect, of at least two tokens: one of them is trained with advantage 0.

    It completes the last micro-batch of a stream that has ended. No two in a row share their beginning.
    """
    length = max(2, length)
    mask = np.zeros(length, dtype=np.int64)
    mask[-1] = 1
    return RolloutSample(
        input_ids=np.full(length, number % 2, dtype=np.int64),
        completion_mask=mask,
        old_log_probs=np.zeros(length, dtype=np.float32),
        advantage=0.0,
        model_version=model_version,
        group_id=-1 - number,
        metrics=SampleMetrics(SampleKey("", number), {}),
    )


def check_sampling(trajectory: Trajectory, temperature: float) -> None:
    """TRL divides logits by its own temperature: with another one every importance ratio would be wrong.

    Raises:
        SettingsError: the trajectory was drawn at another temperature, or its logprobs are of the raw distribution.
    """
    drawn_at = trajectory.sampling.temperature
    if not math.isclose(drawn_at, temperature, rel_tol=1e-6):
        raise SettingsError(
            f"trajectory {trajectory.trajectory_id!r} was drawn at temperature {drawn_at}, TRL scores at "
            f"{temperature}: set AsyncGRPOConfig(temperature={drawn_at})"
        )
    if trajectory.logprobs_mode != "processed_logprobs":
        raise SettingsError(
            f"logprobs of trajectory {trajectory.trajectory_id!r} are {trajectory.logprobs_mode!r}: TRL needs those of "
            "the distribution tokens were drawn from, processed_logprobs"
        )


def _rollout_sample(
    trajectory: Trajectory, index: int, advantage: float, group: TrajectoryGroup, group_id: int, model_version: int
) -> RolloutSample:
    sample = trajectory.samples[index]
    before = len(sample.prompt_ids)
    mask = np.concatenate([np.zeros(before, dtype=np.int64), sample.response_mask.astype(np.int64)])
    logprobs = np.concatenate([np.zeros(before, dtype=np.float32), _sampled_logprobs(sample)])
    return RolloutSample(
        input_ids=np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int64),
        completion_mask=mask,
        old_log_probs=logprobs,
        advantage=advantage,
        model_version=model_version,
        group_id=group_id,
        metrics=SampleMetrics(SampleKey(trajectory.trajectory_id, index), _metrics(trajectory, group)),
    )


def _sampled_logprobs(sample: Sample) -> NDArray[np.float32]:
    return np.where(sample.response_mask, sample.response_logprobs, 0).astype(np.float32)


def _metrics(trajectory: Trajectory, group: TrajectoryGroup) -> dict[str, float]:
    metrics = {f"rewards/{name}": value for name, value in trajectory.rewards.items()}
    if trajectory.reward is not None:
        metrics["reward"] = trajectory.reward
    rewards = group.rewards
    if not np.isnan(rewards).any():
        metrics["reward_std"] = float(rewards.std())
    metrics["rollstream/turns"] = float(trajectory.num_turns)
    if group.staleness is not None:
        metrics["rollstream/staleness"] = float(group.staleness)
    return metrics
