"""What changed between two evaluations, prompt by prompt, and whether chance alone would show as much. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import msgspec

from rollstream.trainers.evaluation.results import PromptResult
from rollstream.trainers.evaluation.summaries import BOOTSTRAP_DRAWS, CONFIDENCE, bootstrap_interval, sample_std


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """New minus baseline of one metric."""

    difference: float
    std_error: float
    ci_low: float
    ci_high: float
    prompts: int
    """Pairs, or the smaller of the two numbers of prompts where none are the same."""
    is_paired: bool
    """Over the prompts that both have. Otherwise the two means are taken as independent, and the interval is wider."""

    @property
    def is_clear(self) -> bool:
        """The interval does not hold 0."""
        return self.ci_low > 0 or self.ci_high < 0


def compare_evaluations(
    new: Sequence[PromptResult],
    baseline: Sequence[PromptResult],
    *,
    has_same_data: bool,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    draws: int = BOOTSTRAP_DRAWS,
) -> dict[str, Difference]:
    """Every metric that both have, over prompts of one environment.

    Args:
        new: results of one environment.
        baseline: results of the same environment, of another policy or time.
        has_same_data: whether equal prompt names mean equal prompts; otherwise nothing is paired.
        seed: of the bootstrap.
        confidence: of the intervals.
        draws: of the bootstrap.
    """
    before = {prompt.prompt: prompt for prompt in baseline} if has_same_data else {}
    found: dict[str, Difference] = {}
    for name in dict.fromkeys(name for prompt in new for name in prompt.values):
        pairs = [
            prompt.values[name] - before[prompt.prompt].values[name]
            for prompt in new
            if name in prompt.values and prompt.prompt in before and name in before[prompt.prompt].values
        ]
        if pairs:
            low, high = bootstrap_interval(pairs, seed=seed, confidence=confidence, draws=draws)
            found[name] = Difference(
                difference=fmean(pairs),
                std_error=sample_std(pairs) / math.sqrt(len(pairs)),
                ci_low=low,
                ci_high=high,
                prompts=len(pairs),
                is_paired=True,
            )
        elif theirs := [prompt.values[name] for prompt in baseline if name in prompt.values]:
            ours = [prompt.values[name] for prompt in new if name in prompt.values]
            found[name] = _unpaired(ours, theirs, seed=seed, confidence=confidence, draws=draws)
    return found


def _unpaired(
    ours: Sequence[float], theirs: Sequence[float], *, seed: int, confidence: float, draws: int
) -> Difference:
    """Two independent bootstraps, whose half widths add as errors do."""
    difference = fmean(ours) - fmean(theirs)
    our_low, our_high = bootstrap_interval(ours, seed=seed, confidence=confidence, draws=draws)
    their_low, their_high = bootstrap_interval(theirs, seed=seed + 1, confidence=confidence, draws=draws)
    our_mean, their_mean = fmean(ours), fmean(theirs)
    return Difference(
        difference=difference,
        std_error=math.hypot(sample_std(ours) / math.sqrt(len(ours)), sample_std(theirs) / math.sqrt(len(theirs))),
        ci_low=difference - math.hypot(our_mean - our_low, their_high - their_mean),
        ci_high=difference + math.hypot(our_high - our_mean, their_mean - their_low),
        prompts=min(len(ours), len(theirs)),
        is_paired=False,
    )
