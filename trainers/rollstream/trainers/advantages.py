"""Advantages of trajectories from their rewards: named estimators, each with the arithmetic of the trainer it is of.

What holds for all of them, and where they differ from some of their sources on purpose:

* A member without a reward (NaN) is no part of any statistic, and its advantage is 0.
* A group with fewer than two scored members says nothing about its members: 0. (verl returns the raw reward there.)
* Equal rewards in a group: exactly 0, whatever the epsilon. Only whitening moves them, with all others, by the batch's
  mean, as long trajectories weigh more in it; where the whole batch has nothing to compare, it is 0 as well.
* Statistics count trajectories, not their samples; all samples of a trajectory share its advantage.
* Sums are in float64, results are float32. Nothing returned is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from rollstream.schemas.errors import InvalidMessageError, SettingsError

Baseline = Literal["mean", "others"]
Scale = Literal["none", "group", "batch", "whitened"]
Rewards = NDArray[np.float64]
RewardValues = Sequence[float] | NDArray[np.floating]


class RewardedGroup(Protocol):
    """What is needed of a group; ``TrajectoryGroup`` is one."""

    @property
    def rewards(self) -> NDArray[np.float32]:
        """float32 [members]; NaN where a member has none."""
        ...

    @property
    def sampled_tokens(self) -> NDArray[np.int64]:
        """int64 [members]; tokens that the policy sampled."""
        ...


class RewardedBatch(Protocol):
    """What is needed of a batch; ``TrainingBatch`` is one."""

    @property
    def groups(self) -> Sequence[RewardedGroup]:
        """The groups in order."""
        ...


@dataclass(frozen=True, slots=True)
class Estimator:
    """Advantage = (reward - baseline) / scale.

    Attributes:
        baseline: ``mean`` of the group, or ``others``: the mean of the group's other members.
        scale: ``none``; ``group``: the standard deviation of the group's rewards; ``batch``: that of all rewards of the
            batch; ``whitened``: what has the baseline taken off gets mean 0 and variance 1 over the batch, each
            trajectory weighted by its sampled tokens.
        ddof: 1 for the unbiased variance (divided by n - 1), 0 for the one divided by n.
        epsilon: added to the standard deviation; with ``whitened`` to the variance.

    Raises:
        SettingsError: a field has none of these values, or epsilon is negative or not finite.
    """

    baseline: Baseline = "mean"
    scale: Scale = "none"
    ddof: Literal[0, 1] = 1
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name, allowed in (("baseline", get_args(Baseline)), ("scale", get_args(Scale)), ("ddof", (0, 1))):
            if getattr(self, name) not in allowed:
                raise SettingsError(f"Estimator({name}={getattr(self, name)!r}): one of {allowed}")
        if not 0 <= self.epsilon < np.inf:
            raise SettingsError(f"Estimator(epsilon={self.epsilon!r}): a finite number, at least 0")

    @property
    def needs_batch(self) -> bool:
        """Whether a group's advantages depend on the other groups of its batch."""
        return self.scale in ("batch", "whitened")


_LEAVE_ONE_OUT = Estimator(baseline="others")

ADVANTAGES: Mapping[str, Estimator] = MappingProxyType(
    {
        "grpo": Estimator(scale="group", ddof=1, epsilon=1e-6),
        "grpo_trl": Estimator(scale="group", ddof=1, epsilon=1e-4),
        "grpo_trl_async": Estimator(scale="group", ddof=0, epsilon=1e-8),
        "grpo_batch_std": Estimator(scale="batch", ddof=1, epsilon=1e-4),
        "dr_grpo": Estimator(),
        "rloo": _LEAVE_ONE_OUT,
        "leave_one_out": _LEAVE_ONE_OUT,
        "reinforce_plus_plus_baseline": Estimator(scale="whitened", ddof=1, epsilon=1e-8),
    }
)
"""Estimators by name. With r the rewards of a group, n their number:

* ``grpo``: (r - mean) / (std + 1e-6), std with n - 1. DeepSeekMath, arXiv 2402.03300; numbers of verl 0.9
  ``compute_grpo_outcome_advantage``, also those of slime with its std normalisation.
* ``grpo_trl``: the same with 1e-4; TRL 1.16 ``GRPOTrainer`` with ``scale_rewards="group"``.
* ``grpo_trl_async``: std with n, and 1e-8; TRL 1.16 ``AsyncGRPOTrainer``.
* ``grpo_batch_std``: (r - mean of the group) / (std of all rewards of the batch + 1e-4); arXiv 2508.08221, TRL with
  ``scale_rewards="batch"``.
* ``dr_grpo``: r - mean. Dr. GRPO, arXiv 2503.20783; also what slime and prime-rl compute.
* ``rloo``: r minus the mean of the other n - 1, which is n / (n - 1) * (r - mean). Back to Basics, arXiv 2402.14740;
  verl ``compute_rloo_outcome_advantage``.
* ``leave_one_out``: another name of ``rloo``, because a leave-one-out baseline is the whole of that estimator; some
  trainers know it under this one.
* ``reinforce_plus_plus_baseline``: r - mean of the group, whitened over the tokens of the batch. REINFORCE++, arXiv
  2501.03262; verl ``compute_reinforce_plus_plus_baseline_outcome_advantage``.
"""


def group_advantages(group: RewardedGroup | RewardValues, estimator: str | Estimator = "grpo") -> NDArray[np.float32]:
    """float32 [members]: the advantages of one group, or of an array of rewards [members] with NaN for "not scored".

    Raises:
        SettingsError: no such estimator, or one that needs the whole batch.
        InvalidMessageError: a reward is infinite.
    """
    chosen = find_estimator(estimator)
    if chosen.needs_batch:
        raise SettingsError(f"estimator {estimator!r} normalises over a batch: use batch_advantages(batch, …)")
    rewards = group if isinstance(group, (Sequence, np.ndarray)) else group.rewards
    return _estimate([_checked(rewards)], None, chosen)[0]


def batch_advantages(
    batch: RewardedBatch | Sequence[RewardValues], estimator: str | Estimator = "grpo"
) -> list[NDArray[np.float32]]:
    """Per group a float32 [members]; ``batch`` may also be a sequence of arrays of rewards, one for each group.

    Rewards alone have no tokens: ``whitened`` then counts each trajectory once.

    Raises:
        SettingsError: no such estimator.
        InvalidMessageError: a reward is infinite.
    """
    chosen = find_estimator(estimator)
    if isinstance(batch, Sequence):
        return _estimate([_checked(rewards) for rewards in batch], None, chosen)
    weights = [group.sampled_tokens.astype(np.float64) for group in batch.groups]
    return _estimate([_checked(group.rewards) for group in batch.groups], weights, chosen)


def find_estimator(estimator: str | Estimator) -> Estimator:
    """The estimator of a name; one that is an estimator already is itself.

    Raises:
        SettingsError: no such name.
    """
    if isinstance(estimator, Estimator):
        return estimator
    if estimator not in ADVANTAGES:
        raise SettingsError(f"no advantage estimator {estimator!r}: there are {', '.join(ADVANTAGES)}")
    return ADVANTAGES[estimator]


def _checked(rewards: RewardValues) -> Rewards:
    checked = np.asarray(rewards, dtype=np.float64)
    if checked.ndim != 1:
        raise SettingsError(f"rewards of shape {checked.shape}: pass those of one group, [members]")
    if np.isinf(checked).any():
        raise InvalidMessageError(
            f"infinite reward among {checked.tolist()!r}: the reward function must return numbers"
        )
    return checked


def _estimate(
    rewards: Sequence[Rewards], weights: Sequence[Rewards] | None, estimator: Estimator
) -> list[NDArray[np.float32]]:
    centred = [_centred(r, estimator) for r in rewards]
    if estimator.scale == "whitened":
        counted = [_is_compared(r) for r in rewards]
        centred = _whitened(centred, counted, weights or [np.ones(len(r)) for r in rewards], estimator)
    elif estimator.scale == "batch":
        scored = np.concatenate([np.zeros(0), *(r[~np.isnan(r)] for r in rewards)])
        centred = [_scaled(c, scored, estimator) for c in centred]
    elif estimator.scale == "group":
        centred = [_scaled(c, r[~np.isnan(r)], estimator) for c, r in zip(centred, rewards, strict=True)]
    return [c.astype(np.float32) for c in centred]


def _is_compared(rewards: Rewards) -> NDArray[np.bool_]:
    """Where a member has a reward and somebody to be compared with."""
    is_scored = ~np.isnan(rewards)
    return is_scored & (is_scored.sum() > 1)


def _centred(rewards: Rewards, estimator: Estimator) -> Rewards:
    is_compared = _is_compared(rewards)
    centred = np.zeros_like(rewards)
    scored = rewards[is_compared]
    if len(scored) == 0 or scored.min() == scored.max():
        return centred
    factor = len(scored) / (len(scored) - 1) if estimator.baseline == "others" else 1.0
    centred[is_compared] = factor * (scored - scored.mean())
    return centred


def _scaled(centred: Rewards, population: Rewards, estimator: Estimator) -> Rewards:
    if not centred.any():
        return centred
    return centred / (population.std(ddof=estimator.ddof) + estimator.epsilon)


def _whitened(
    centred: Sequence[Rewards],
    counted: Sequence[NDArray[np.bool_]],
    weights: Sequence[Rewards],
    estimator: Estimator,
) -> list[Rewards]:
    values = np.concatenate([np.zeros(0), *centred])
    is_counted = np.concatenate([np.zeros(0, dtype=np.bool_), *counted])
    weight = np.concatenate([np.zeros(0), *weights]) * is_counted
    total = weight.sum()
    if total <= estimator.ddof or not values[weight > 0].any():
        return [np.zeros_like(c) for c in centred]
    mean = (weight * values).sum() / total
    variance = (weight * (values - mean) ** 2).sum() / (total - estimator.ddof)
    whitened = np.where(is_counted, (values - mean) / np.sqrt(variance + estimator.epsilon), 0.0)
    return np.split(whitened, np.cumsum([len(c) for c in centred])[:-1])
