"""Means over prompts, with errors that know that the samples of a prompt belong together. Pure, seeded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import msgspec
import numpy as np
import numpy.typing as npt

from rollstream.trainers.evaluation.episodes import REWARD
from rollstream.trainers.evaluation.results import PromptResult

BOOTSTRAP_DRAWS = 2000
CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 100


class MetricSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One metric over the prompts that have it."""

    mean: float
    """Over prompts, each of the same weight."""
    std: float
    """Between prompts (n - 1); 0 for one prompt."""
    std_error: float
    """Of the mean: ``std / sqrt(prompts)``, the error clustered by prompt. It covers which prompts were drawn and what
    was sampled for them."""
    ci_low: float
    """The confidence interval of the mean: percentiles of a bootstrap over prompts."""
    ci_high: float
    prompts: int
    samples_std: float | None = None
    """Between single episodes of all prompts; of rewards only."""


def summarize(
    prompts: Sequence[PromptResult], *, seed: int = 0, confidence: float = CONFIDENCE, draws: int = BOOTSTRAP_DRAWS
) -> dict[str, MetricSummary]:
    """Every metric that at least one prompt has, in order of their first appearance."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.values)
    found: dict[str, MetricSummary] = {}
    for name in names:
        values = [prompt.values[name] for prompt in prompts if name in prompt.values]
        rewards = [reward for prompt in prompts for reward in prompt.rewards] if name == REWARD else None
        found[name] = summarize_values(values, samples=rewards, seed=seed, confidence=confidence, draws=draws)
    return found


def summarize_environments(
    prompts: Sequence[PromptResult], *, seed: int = 0, confidence: float = CONFIDENCE, draws: int = BOOTSTRAP_DRAWS
) -> dict[str, dict[str, MetricSummary]]:
    """The summaries of each environment by its name."""
    environments = dict.fromkeys(prompt.environment for prompt in prompts)
    return {
        name: summarize([p for p in prompts if p.environment == name], seed=seed, confidence=confidence, draws=draws)
        for name in environments
    }


def summarize_values(
    values: Sequence[float],
    *,
    samples: Sequence[float] | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    draws: int = BOOTSTRAP_DRAWS,
) -> MetricSummary:
    """The summary of one value per prompt; at least one. ``samples``: the values of single episodes, if there are."""
    low, high = bootstrap_interval(values, seed=seed, confidence=confidence, draws=draws)
    std = sample_std(values)
    return MetricSummary(
        mean=fmean(values),
        std=std,
        std_error=std / math.sqrt(len(values)),
        ci_low=low,
        ci_high=high,
        prompts=len(values),
        samples_std=sample_std(samples) if samples else None,
    )


def overall(environments: Mapping[str, Mapping[str, MetricSummary]]) -> dict[str, MetricSummary]:
    """Means over environments, each of the same weight, of the metrics that all of them have.

    ``std`` is between environments; the error is that of a mean of independent means, and the interval twice 1.96 of it
    wide, as a normal distribution has it.
    """
    if not environments:
        return {}
    first, *others = environments.values()
    found: dict[str, MetricSummary] = {}
    for name in first:
        parts = [metrics[name] for metrics in environments.values() if name in metrics]
        if len(parts) != len(others) + 1:
            continue
        mean = fmean(part.mean for part in parts)
        error = math.sqrt(sum(part.std_error**2 for part in parts)) / len(parts)
        found[name] = MetricSummary(
            mean=mean,
            std=sample_std([part.mean for part in parts]),
            std_error=error,
            ci_low=mean - 1.96 * error,
            ci_high=mean + 1.96 * error,
            prompts=sum(part.prompts for part in parts),
        )
    return found


def sample_std(values: Sequence[float]) -> float:
    """The standard deviation with n - 1 in the denominator; 0 for a single value."""
    return float(np.std(np.asarray(values, dtype=np.float64), ddof=1)) if len(values) > 1 else 0.0


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, confidence: float = CONFIDENCE, draws: int = BOOTSTRAP_DRAWS
) -> tuple[float, float]:
    """Percentiles of the mean under drawing as many values with replacement; a function of values and seed."""
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means: list[npt.NDArray[np.float64]] = []
    for begin in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - begin)
        means.append(array[rng.integers(0, len(array), size=(count, len(array)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
