"""Groups of trajectories as slime's samples, and the rewards slime trains on. Pure; knows nothing of slime or torch.

slime nests samples as prompt, rollout, sample of the rollout. Samples of one rollout have the same ``rollout_id``, so
that its loss counts the rollout once. It takes the same number of rollouts in every step and drops what is over, so
groups with fewer members are filled up with samples that carry no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Sample, Trajectory
from rollstream.trainers.advantages import batch_advantages
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup

SampleDict = dict[str, Any]
"""What slime's ``Sample.from_dict`` takes."""


class RewardedSample(Protocol):
    """What is needed of slime's ``Sample``."""

    group_index: int | None
    rollout_id: int | None
    reward: Any
    remove_sample: bool


def sample_dicts(batch: TrainingBatch, *, groups: int, members: int) -> list[list[list[SampleDict]]]:
    """``groups`` lists of ``members`` rollouts of one or more samples each.

    Missing members, and missing groups of a last batch, are filled up with samples of loss mask 0 and
    ``remove_sample``.

    Raises:
        SettingsError: a group has more members than slime counts on.
    """
    dicts = [_group_dicts(group, place, members) for place, group in enumerate(batch.groups)]
    blank = _blank(batch.groups[0].trajectories[0], status="aborted")
    for place in range(len(dicts), groups):
        dicts.append([[_placed(blank, place, member, members)] for member in range(members)])
    return dicts


def evaluation_dicts(groups: Sequence[TrajectoryGroup]) -> dict[str, list[SampleDict]]:
    """The last sample of each scored trajectory, by data source."""
    found: dict[str, list[SampleDict]] = {}
    for trajectory in (t for group in groups for t in group.trajectories if t.reward is not None):
        found.setdefault(trajectory.data_source or "rollstream", []).append(
            _sample_dict(trajectory, trajectory.samples[-1])
        )
    return found


def trained_rewards(samples: Sequence[RewardedSample], estimator: str | None) -> tuple[list[float], list[float]]:
    """(raw, trained on), one for each sample, as slime's hook for rewards returns them.

    Statistics count rollouts within their own prompt, however many samples they have; fillers count nowhere. They get
    their group's mean as raw reward, which leaves averages as they are. ``estimator`` None: rewards as they are.
    """
    rewards: dict[int, dict[int, float]] = {}
    for sample in samples:
        of_group = rewards.setdefault(_known(sample.group_index), {})
        if not sample.remove_sample:
            of_group[_known(sample.rollout_id)] = float(sample.reward)
    every = [reward for of_group in rewards.values() for reward in of_group.values()]
    overall = float(np.mean(every)) if every else 0.0
    means = {group: float(np.mean(list(r.values()))) if r else overall for group, r in rewards.items()}
    values = [np.array(list(of_group.values())) for of_group in rewards.values()]
    trained: list[NDArray[np.float32]] | list[NDArray[np.float64]]
    trained = values if estimator is None else batch_advantages(values, estimator)
    by_rollout = {
        rollout: float(value)
        for of_group, advantages in zip(rewards.values(), trained, strict=True)
        for rollout, value in zip(of_group, advantages, strict=True)
    }
    raw = [means[_known(s.group_index)] if s.remove_sample else float(s.reward) for s in samples]
    return raw, [0.0 if s.remove_sample else by_rollout[_known(s.rollout_id)] for s in samples]


def _group_dicts(group: TrajectoryGroup, place: int, members: int) -> list[list[SampleDict]]:
    if group.group_size > members:
        raise SettingsError(
            f"group {group.group_index} of run {group.run_id!r} has {group.group_size} members, slime counts on "
            f"{members}: set --n-samples-per-prompt {group.group_size}"
        )
    rollouts = [
        [
            _placed(_sample_dict(trajectory, sample, group.staleness), place, member, members)
            for sample in trajectory.samples
            if sample.is_trainable
        ]
        for member, trajectory in enumerate(group.trajectories)
    ]
    blank = _blank(group.trajectories[0], status="aborted")
    rollouts += [[_placed(blank, place, member, members)] for member in range(len(rollouts), members)]
    return rollouts


def _sample_dict(trajectory: Trajectory, sample: Sample, staleness: int | None = None) -> SampleDict:
    response_mask = sample.response_mask.tolist()
    return {
        "prompt": "",
        "tokens": [*sample.prompt_ids.tolist(), *sample.response_ids.tolist()],
        "response": "",
        "response_length": len(sample.response_ids),
        "reward": trajectory.reward,
        "loss_mask": response_mask,
        "rollout_log_probs": np.where(sample.response_mask, sample.response_logprobs, 0).tolist(),
        "weight_versions": [str(span.version) for span in sample.version_spans],
        "status": trajectory.status,
        "remove_sample": False,
        "metadata": {
            "trajectory_id": trajectory.trajectory_id,
            "run_id": trajectory.run_id,
            "source_name": trajectory.data_source or "rollstream",
            "staleness": staleness,
        },
    }


def _blank(trajectory: Trajectory, *, status: str) -> SampleDict:
    """Two tokens of a real sequence, without loss."""
    sample = next(sample for sample in trajectory.samples if sample.is_trainable)
    return {
        **_sample_dict(trajectory, sample),
        "tokens": [int(sample.prompt_ids[0]), int(sample.response_ids[0])],
        "response_length": 1,
        "reward": 0.0,
        "loss_mask": [0],
        "rollout_log_probs": [0.0],
        "weight_versions": [],
        "status": status,
        "remove_sample": True,
        "metadata": {"source_name": "filling"},
    }


def _placed(sample: SampleDict, group: int, member: int, members: int) -> SampleDict:
    """``index`` and ``rollout_id`` name the rollout within its batch, which is all that slime compares."""
    rollout = group * members + member
    return {**sample, "group_index": group, "index": rollout, "rollout_id": rollout}


def _known(number: int | None) -> int:
    if number is None:
        raise SettingsError(
            "a sample has no group_index or rollout_id: this reward hook is for the samples of "
            "rollstream.trainers.adapters.slime.generate_rollout only"
        )
    return number
