"""What an evaluation keeps of a trajectory: its score and a few figures, not its arrays. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Status, Trajectory

REWARD = "reward"
Scores = float | Mapping[str, float]
"""What an own scoring function returns: the reward, or metrics by name (``reward`` takes the reward's place)."""


@dataclass(frozen=True, slots=True)
class EpisodeFacts:
    """One episode.

    Attributes:
        environment: its data source.
        prompt: the row it came from, ``test.jsonl:17``.
        reward: None: not scored, which is never 0.
        values: figures by metric.
        is_foreign: another policy than the pinned one drew at least one of its tokens.
    """

    environment: str
    prompt: str
    group_index: int
    member_index: int
    status: Status
    reward: float | None
    values: Mapping[str, float] = field(default_factory=dict[str, float])
    is_foreign: bool = False
    model: str = ""
    tokenizer_hash: str = ""
    error: str = ""


def episode_facts(trajectory: Trajectory, *, lineage: int, version: int, scores: Scores | None = None) -> EpisodeFacts:
    """The facts of a trajectory that policy (lineage, version) should have drawn.

    Args:
        trajectory: of an evaluation task.
        lineage: of the pinned policy.
        version: of the pinned policy.
        scores: what an own function says of it; None: the trajectory's own reward and metrics alone.

    Raises:
        SettingsError: a score is no finite number.
    """
    sampled = sum(int(sample.response_mask.sum()) for sample in trajectory.samples)
    values = {
        "turns": float(trajectory.num_turns),
        "tokens": float(sampled),
        "tool_calls": float(sum(turn.tool_calls for sample in trajectory.samples for turn in sample.turns)),
        **{f"rewards.{name}": value for name, value in trajectory.rewards.items()},
        **{f"metrics.{name}": value for name, value in trajectory.metrics.items()},
    }
    reward = trajectory.reward
    if scores is not None:
        named = named_scores(scores, trajectory.trajectory_id)
        reward = named.pop(REWARD, reward)
        values.update(named)
    return EpisodeFacts(
        environment=trajectory.data_source,
        prompt=trajectory.data_index or f"group {trajectory.group_index}",
        group_index=trajectory.group_index,
        member_index=trajectory.member_index,
        status=trajectory.status,
        reward=None if trajectory.status in ("failed", "aborted") else reward,
        values={} if trajectory.status == "failed" else values,
        is_foreign=is_foreign(trajectory, lineage=lineage, version=version),
        model=trajectory.model,
        tokenizer_hash=trajectory.tokenizer_hash,
        error=f"{trajectory.error.type}: {trajectory.error.message}" if trajectory.error else "",
    )


def named_scores(scores: object, trajectory_id: str) -> dict[str, float]:
    """What an own function has returned, by name.

    Raises:
        SettingsError: it is neither a number nor numbers by name.
    """
    named = cast("Mapping[object, object]", scores) if isinstance(scores, Mapping) else {REWARD: scores}
    checked: dict[str, float] = {}
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SettingsError(
                f"the score {name!r} of trajectory {trajectory_id!r} is {value!r}, expected a finite number; leave out "
                "what cannot be scored"
            )
        checked[str(name)] = float(value)
    return checked


def is_foreign(trajectory: Trajectory, *, lineage: int, version: int) -> bool:
    """Whether another policy than (lineage, version) drew at least one token."""
    return any(
        (span.lineage, span.version) != (lineage, version)
        for sample in trajectory.samples
        for span in sample.version_spans
    )
