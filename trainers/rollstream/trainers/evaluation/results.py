"""Episodes to one result per prompt, the unit that all errors and comparisons are computed over. Pure.

Samples of one prompt resemble one another, so prompts, not samples, are drawn independently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

import msgspec

from rollstream.trainers.evaluation.episodes import REWARD, EpisodeFacts
from rollstream.trainers.evaluation.estimators import pass_at_k, pass_hat_k


class PromptResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the episodes of one prompt come to; those with tokens of a foreign policy are not among them."""

    environment: str
    prompt: str
    episodes: int
    """In any status."""
    rewards: list[float]
    """Of the scored episodes, in order of their members."""
    solved: int
    values: dict[str, float]
    """The prompt's value of each metric it has: a mean over its episodes, or an estimate."""


def prompt_results(
    episodes: Iterable[EpisodeFacts], *, ks: Sequence[int], pass_threshold: float, has_pass_hat: bool = False
) -> list[PromptResult]:
    """One result per prompt, in order of the groups.

    A prompt has pass@k only if k of its episodes were scored: failed ones are neither solved nor unsolved.

    Args:
        episodes: each once; foreign ones are left out here.
        ks: the k of pass@k.
        pass_threshold: rewards from here on count as solved.
        has_pass_hat: whether pass^k is estimated too.
    """
    groups: dict[tuple[str, int, str], list[EpisodeFacts]] = defaultdict(list)
    for episode in episodes:
        if not episode.is_foreign:
            groups[episode.environment, episode.group_index, episode.prompt].append(episode)
    return [
        _result(sorted(groups[key], key=lambda e: e.member_index), ks, pass_threshold, has_pass_hat)
        for key in sorted(groups)
    ]


def _result(episodes: list[EpisodeFacts], ks: Sequence[int], pass_threshold: float, has_pass_hat: bool) -> PromptResult:
    rewards = [episode.reward for episode in episodes if episode.reward is not None]
    solved = sum(reward >= pass_threshold for reward in rewards)
    values: dict[str, float] = {}
    if rewards:
        values[REWARD] = fmean(rewards)
        values.update({f"pass@{k}": pass_at_k(len(rewards), solved, k) for k in ks if k <= len(rewards)})
        if has_pass_hat:
            values.update({f"pass^{k}": pass_hat_k(len(rewards), solved, k) for k in ks if k <= len(rewards)})
    for name in dict.fromkeys(name for episode in episodes for name in episode.values):
        values[name] = fmean(episode.values[name] for episode in episodes if name in episode.values)
    values["truncated"] = fmean(episode.status == "truncated" for episode in episodes)
    values["failed"] = fmean(episode.status in ("failed", "aborted") for episode in episodes)
    first = episodes[0]
    return PromptResult(
        environment=first.environment,
        prompt=first.prompt,
        episodes=len(episodes),
        rewards=rewards,
        solved=solved,
        values=values,
    )
