"""Which members of a group are trained on, and which groups reach no batch. Pure.

Every member that is set aside and every group that is dropped has exactly one reason, the first that applies in the
order of the code.
"""

from __future__ import annotations

from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batches import Exclusion, TrajectoryGroup
from rollstream.trainers.groups import ArrivingGroup
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.staleness import Ancestry, staleness
from rollstream.trainers.stream_state import Drop

REPLACEABLE: frozenset[Exclusion] = frozenset({"failed", "untrainable", "unscored"})
"""Members of which another rollout is worth having. Not those that were too long: drawing again until one is short
enough would prefer short episodes."""


def exclusion(trajectory: Trajectory, settings: TrainerSettings) -> Exclusion | None:
    """Why the member is not trained on; None if it is."""
    if trajectory.status == "failed":
        return "failed"
    trainable = [sample for sample in trajectory.samples if sample.is_trainable]
    if not trainable:
        return "untrainable"
    if trajectory.reward is None and settings.needs_reward:
        return "unscored"
    if trajectory.status == "truncated" and settings.truncated == "drop_member":
        return "truncated"
    limit = settings.max_sample_tokens
    if limit is not None and any(len(s.prompt_ids) + len(s.response_ids) > limit for s in trainable):
        return "overlong"
    return None


def is_replaceable(trajectory: Trajectory, settings: TrainerSettings) -> bool:
    """Whether another rollout may take the member's place."""
    return exclusion(trajectory, settings) in REPLACEABLE


def training_group(
    arriving: ArrivingGroup, settings: TrainerSettings, ancestry: Ancestry, version: int
) -> TrajectoryGroup:
    """The group as a trainer gets it at ``version``: members by index, those set aside with their reasons."""
    members = [arriving.members[index] for index in sorted(arriving.members)]
    reasons: list[Exclusion | None] = [exclusion(member, settings) for member in members]
    trainable = tuple(member for member, reason in zip(members, reasons, strict=True) if reason is None)
    exclusions: tuple[Exclusion, ...] = tuple(reason for reason in reasons if reason is not None)
    ages = [staleness(member, ancestry, version) for member in trainable]
    return TrajectoryGroup(
        run_id=arriving.key.run_id,
        group_id=arriving.group_id,
        group_index=arriving.key.group_index,
        group_size=arriving.group_size,
        trajectories=trainable,
        excluded=tuple(member for member, reason in zip(members, reasons, strict=True) if reason is not None),
        exclusions=exclusions,
        staleness=None if None in ages else max((age for age in ages if age is not None), default=0),
    )


def reason_to_drop(group: TrajectoryGroup, settings: TrainerSettings) -> Drop | None:
    """Why the group reaches no batch now; None if it may."""
    if settings.truncated == "drop_group" and any(t.status == "truncated" for t in group.trajectories):
        return "truncated"
    count = len(group.trajectories)
    if settings.partial_groups == "drop" and count < group.group_size:
        return "partial"
    needed = min(settings.min_members, group.group_size)
    if count < needed:
        return _too_few(group, needed - count)
    if settings.max_staleness is not None and age(group) > settings.max_staleness:
        return "stale"
    if settings.drop_zero_variance and len({t.reward for t in group.trajectories}) == 1:
        return "zero_variance"
    return None


def age(group: TrajectoryGroup) -> float:
    """In policy versions; infinite if a token is of a lineage that is not the trainer's."""
    return float("inf") if group.staleness is None else group.staleness


def _too_few(group: TrajectoryGroup, lacking: int) -> Drop:
    """A filter by length is named if the group would have had enough members without it."""
    overlong = group.exclusions.count("overlong")
    if overlong >= lacking:
        return "overlong"
    return "truncated" if overlong + group.exclusions.count("truncated") >= lacking else "failed"
