"""A group as Atropos' ``ScoredData``, and which groups its trainers can use at all. Pure.

Layout: ``tokens`` is prompt and response; ``masks`` has the token's id where the policy sampled it, else -100;
``inference_logprobs`` has its logprob there, else 1.0. Nothing is shifted: element ``i`` belongs to ``tokens[i]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.trajectories import Sample, Trajectory
from rollstream.trainers.batches import TrajectoryGroup

IGNORED_LABEL = -100
UNSAMPLED_LOGPROB = 1.0
"""Trainers leave out positions with a positive logprob."""

Refusal = Literal["incomplete", "equal_scores", "too_long", "unscored"]


@dataclass(frozen=True, slots=True)
class GroupRules:
    """What a group must be like to be handed to an Atropos trainer.

    Attributes:
        max_token_len: sequences must be shorter; what the trainer registered. None: no limit.
        keeps_equal_scores: hand over groups whose scores are all equal; Atropos' own environments drop them.
        keeps_incomplete: cut a group that lacks members to the largest power of two instead of dropping it.
        mutes_truncated: have the trainer set the advantage of truncated trajectories to 0; they count in the group's
            mean.
    """

    max_token_len: int | None = None
    keeps_equal_scores: bool = False
    keeps_incomplete: bool = False
    mutes_truncated: bool = False


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One sequence of a group."""

    trajectory: Trajectory
    sample: Sample


def members_of(group: TrajectoryGroup) -> list[GroupMember]:
    """The sequences of a group: of each member its last trainable sample, so that statistics count trajectories."""
    samples = [(t, [sample for sample in t.samples if sample.is_trainable]) for t in group.trajectories]
    return [GroupMember(trajectory, chosen[-1]) for trajectory, chosen in samples if chosen]


def fitting_size(members: int, group_size: int, batch_size: int, rules: GroupRules) -> int:
    """How many of ``members`` sequences may be pushed in one group; 0: none.

    Atropos' server batches only what it can pack: groups that are all of one size, or of sizes that are powers of two
    and divide ``batch_size``, its sequences per batch. A complete group goes as it is if it can be packed at all.
    """
    if members == group_size and batch_size % group_size == 0:
        return members
    if not rules.keeps_incomplete or members < 2:
        return 0
    largest = 1 << (members.bit_length() - 1)
    return largest if _is_power_of_two(group_size) and batch_size % largest == 0 else 0


def refusal(members: Sequence[GroupMember], rules: GroupRules) -> Refusal | None:
    """Why a trainer could not use these members as one group; None: it can."""
    if not members:
        return "incomplete"
    if any(member.trajectory.reward is None for member in members):
        return "unscored"
    if not rules.keeps_equal_scores and len({member.trajectory.reward for member in members}) == 1:
        return "equal_scores"
    if rules.max_token_len is not None and any(_length(member.sample) >= rules.max_token_len for member in members):
        return "too_long"
    return None


def scored_group(
    group: TrajectoryGroup, members: Sequence[GroupMember], rules: GroupRules, *, env_id: int | None = None
) -> dict[str, Any]:
    """``ScoredData`` as plain data, with each of its keys.

    The temperature is in ``generation_params`` and, because members may differ, in ``overrides``. Where the group came
    from and which policy versions drew it is in ``group_overrides`` and ``overrides``, which the server passes through.

    Raises:
        InvalidMessageError: a member has no reward: leave such groups out (``refusal``).
    """
    sampling = members[0].trajectory.sampling
    return {
        "tokens": [_tokens(member.sample) for member in members],
        "masks": [_masks(member.sample) for member in members],
        "scores": [_score(member.trajectory) for member in members],
        "advantages": None,
        "ref_logprobs": None,
        "messages": None,
        "generation_params": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "max_tokens": sampling.max_tokens,
        },
        "inference_logprobs": [_logprobs(member.sample) for member in members],
        "overrides": [_overrides(member.trajectory, rules) for member in members],
        "group_overrides": {
            "run_id": group.run_id,
            "group_id": group.group_id,
            "group_index": group.group_index,
            "policy_version_min": min(member.trajectory.policy_version_min for member in members),
            "policy_version_max": max(member.trajectory.policy_version_max for member in members),
        },
        "images": None,
        "env_id": env_id,
        "distill_token_ids": None,
        "distill_logprobs": None,
    }


def _overrides(trajectory: Trajectory, rules: GroupRules) -> dict[str, Any]:
    overrides: dict[str, Any] = {
        "temperature": trajectory.sampling.temperature,
        "trajectory_id": trajectory.trajectory_id,
        "member_index": trajectory.member_index,
        "policy_version_min": trajectory.policy_version_min,
        "policy_version_max": trajectory.policy_version_max,
    }
    if rules.mutes_truncated and trajectory.status == "truncated":
        overrides["set_advantage_to_zero"] = True
    return overrides


def _tokens(sample: Sample) -> list[int]:
    return [*sample.prompt_ids.tolist(), *sample.response_ids.tolist()]


def _masks(sample: Sample) -> list[int]:
    labels = np.where(sample.response_mask == 1, sample.response_ids, IGNORED_LABEL)
    return [IGNORED_LABEL] * len(sample.prompt_ids) + labels.tolist()


def _logprobs(sample: Sample) -> list[float]:
    logprobs = np.where(sample.response_mask == 1, sample.response_logprobs, UNSAMPLED_LOGPROB)
    return [UNSAMPLED_LOGPROB] * len(sample.prompt_ids) + logprobs.tolist()


def _score(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise InvalidMessageError(
            f"trajectory {trajectory.trajectory_id!r} has no reward, and Atropos' trainers need one: leave it out",
            field="reward",
        )
    return float(trajectory.reward)


def _length(sample: Sample) -> int:
    return len(sample.prompt_ids) + len(sample.response_ids)


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
