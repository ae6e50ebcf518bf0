"""How scores become the reward of a trajectory. Pure.

One formula: ``reward = Σ weight[name] · rewards[name]`` over named rewards; the rules differ in the weights they begin
with. A term that is not known makes the reward unknown (None), never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers.scoring import Score

Rule = Literal["replace", "add", "weighted"]

FAILURES = "scorer_failures"
"""Metric: how many scorers could not score the trajectory."""
ERRORS = "scorer_errors"
"""Field of ``extra``: why, by the scorer's name."""
EXTRA = "scorers"
"""Field of ``extra``: what scorers returned as theirs, by name."""


@dataclass(frozen=True, slots=True)
class ScorerFailure:
    """Why there is no score."""

    type: str
    message: str


Outcome = Score | ScorerFailure


@dataclass(frozen=True, slots=True)
class Combination:
    """Which named rewards count how much, and under which name the reward that was there before is kept."""

    weights: Mapping[str, float]
    outcome_name: str


def combination(rule: Rule, weights: Mapping[str, float], scorers: Sequence[str], outcome_name: str) -> Combination:
    """The weights a rule leads to.

    ``replace``: every scorer counts 1. ``add``: so does the outcome's reward. ``weights`` of scorers replace those.
    ``weighted``: exactly ``weights``, over any named reward: scorers, their parts, the outcome's.

    Raises:
        SettingsError: names clash, or weights are missing or of no use.
    """
    if outcome_name in scorers:
        raise SettingsError(f"scorer.outcome_name = {outcome_name!r} is the name of a scorer: choose another")
    if rule == "weighted":
        if not weights:
            raise SettingsError("scorer.combine = 'weighted' needs scorer.weights, e.g. outcome = 0.7 and judge = 0.3")
        return Combination(dict(weights), outcome_name)
    base = dict.fromkeys(scorers, 1.0) | ({outcome_name: 1.0} if rule == "add" else {})
    if unknown := sorted(weights.keys() - base.keys()):
        raise SettingsError(f"scorer.weights names {unknown}, scorer.combine = {rule!r} knows {sorted(base)}")
    return Combination(base | dict(weights), outcome_name)


def scored(trajectory: Trajectory, outcomes: Mapping[str, Outcome], how: Combination) -> Trajectory:
    """The trajectory with its scores; ids, samples and everything else stay as they are.

    ``rewards`` gets each score under the scorer's name, its parts as ``name/part``, and the reward that was there
    before under ``outcome_name``; one that is in the way of a new name moves to ``<outcome_name>/<its name>``.
    """
    names = {how.outcome_name, *outcomes}
    rewards = {_kept(name, names, how.outcome_name): value for name, value in trajectory.rewards.items()}
    if trajectory.reward is not None:
        rewards[how.outcome_name] = trajectory.reward
    metrics, extras, errors = dict(trajectory.metrics), dict[str, Any](), dict[str, str]()
    for name, outcome in outcomes.items():
        if isinstance(outcome, ScorerFailure):
            errors[name] = f"{outcome.type}: {outcome.message}"
            continue
        rewards[name] = outcome.reward
        rewards |= {f"{name}/{part}": value for part, value in outcome.rewards.items()}
        metrics |= {f"{name}/{metric}": value for metric, value in outcome.metrics.items()}
        if outcome.extra:
            extras[name] = dict(outcome.extra)
    metrics[FAILURES] = float(len(errors))
    extra = trajectory.extra | ({EXTRA: extras} if extras else {}) | ({ERRORS: errors} if errors else {})
    return msgspec.structs.replace(
        trajectory, reward=_sum(rewards, how.weights), rewards=rewards, metrics=metrics, extra=extra
    )


def without_extras(trajectory: Trajectory, reason: str) -> Trajectory:
    """Unscored, and as small as a scored one gets: for one that does not fit into a record."""
    metrics = trajectory.metrics | {FAILURES: 1.0}
    return msgspec.structs.replace(
        trajectory, reward=None, metrics=metrics, extra=trajectory.extra | {ERRORS: {"*": reason}}
    )


def _kept(name: str, taken: set[str], outcome_name: str) -> str:
    return f"{outcome_name}/{name}" if name in taken else name


def _sum(rewards: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    counting = {name: weight for name, weight in weights.items() if weight != 0}
    if counting.keys() - rewards.keys():
        return None
    return sum(weight * rewards[name] for name, weight in counting.items())
