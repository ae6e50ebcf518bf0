"""What one trajectory says about the training: the demo's curves and figures are functions of these. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.trajectories import Status, Trajectory


@dataclass(frozen=True)
class TrajectoryFacts:
    """One trajectory in brief.

    Attributes:
        log_order: (broker timestamp in ms, partition, offset); partitions have no order among one another but time.
        task_order: (group index, member index): the order in which the tasks were emitted.
        reward: None when it was not scored (failed by infrastructure).
        has_tool_call: at least one well-formed tool call was made.
        is_well_formed: no turn was malformed.
        sampled_tokens: tokens drawn by the policy.
        policy_version: the oldest version that drew one of them.
        lineage: of that version.
        staleness: versions published when it arrived that none of its oldest tokens had seen.
    """

    log_order: tuple[int, int, int]
    task_order: tuple[int, int]
    trajectory_id: str
    status: Status
    reward: float | None
    has_tool_call: bool
    is_well_formed: bool
    sampled_tokens: int
    policy_version: int
    lineage: int
    staleness: int = 0

    @property
    def timestamp_s(self) -> float:
        """Unix seconds at which the broker took it."""
        return self.log_order[0] / 1000

    def seen_under(self, newest: PolicyVersion | None) -> TrajectoryFacts:
        """The same with its staleness, where ``newest`` is the newest policy version published when it arrived."""
        comparable = newest is not None and newest.lineage == self.lineage
        return replace(self, staleness=max(0, newest.version - self.policy_version) if newest and comparable else 0)


def trajectory_facts(
    trajectory: Trajectory, log_order: tuple[int, int, int], newest: PolicyVersion | None
) -> TrajectoryFacts:
    """Reduce a trajectory; ``newest`` is the newest policy version published when it arrived."""
    turns = [turn for sample in trajectory.samples for turn in sample.turns]
    facts = TrajectoryFacts(
        log_order=log_order,
        task_order=(trajectory.group_index, trajectory.member_index),
        trajectory_id=trajectory.trajectory_id,
        status=trajectory.status,
        reward=trajectory.reward,
        has_tool_call=any(turn.tool_calls > 0 for turn in turns),
        is_well_formed=not any(turn.is_malformed for turn in turns),
        sampled_tokens=sum(int(sample.response_mask.sum()) for sample in trajectory.samples),
        policy_version=trajectory.policy_version_min,
        lineage=trajectory.lineage,
    )
    return facts.seen_under(newest)


def mean_reward(facts: Sequence[TrajectoryFacts]) -> float | None:
    """Mean over the scored ones; None if there is none."""
    rewards = [fact.reward for fact in facts if fact.reward is not None]
    return sum(rewards) / len(rewards) if rewards else None


def tool_call_rate(facts: Sequence[TrajectoryFacts]) -> float | None:
    """Share of trajectories with a tool call; None if there is no trajectory."""
    return sum(fact.has_tool_call for fact in facts) / len(facts) if facts else None


def well_formed_rate(facts: Sequence[TrajectoryFacts]) -> float | None:
    """Share of trajectories without a malformed turn; None if there is no trajectory."""
    return sum(fact.is_well_formed for fact in facts) / len(facts) if facts else None


def tokens_per_s(facts: Sequence[TrajectoryFacts], session_starts: Sequence[float] = ()) -> float:
    """Sampled tokens per second between the first and the last arrival; 0.0 while that span is empty.

    With the starts of several sessions (unix seconds) only the spans within each count, not the time between them.
    """
    sessions: dict[int, list[float]] = {}
    for fact in facts:
        sessions.setdefault(bisect_right(session_starts, fact.timestamp_s), []).append(fact.timestamp_s)
    span_s = sum(max(times) - min(times) for times in sessions.values())
    return sum(fact.sampled_tokens for fact in facts) / span_s if span_s > 0 else 0.0


def split_evenly(facts: Sequence[TrajectoryFacts], parts: int) -> list[Sequence[TrajectoryFacts]]:
    """Cut a sequence into at most ``parts`` runs of nearly equal length, none of them empty, order kept."""
    parts = min(parts, len(facts))
    cuts = [round(index * len(facts) / parts) for index in range(parts + 1)] if parts else []
    return [facts[start:end] for start, end in pairwise(cuts)]
