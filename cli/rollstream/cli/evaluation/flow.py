"""One evaluation from its settings to its result."""

from __future__ import annotations

import asyncio
import inspect
import os
import platform
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, cast

import msgspec

from rollstream.cli.evaluation.context import EvaluationContext
from rollstream.cli.evaluation.functions import load_function
from rollstream.cli.evaluation.rollouts import OnProgress
from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.cli.settings import shown_settings
from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import SettingsError
from rollstream.trainers.evaluation import (
    Evaluation,
    MetricSummary,
    prompt_results,
    summarize_environments,
)
from rollstream.trainers.evaluation.report import EpisodeCounts, PolicyFacts
from rollstream.trainers.evaluation.summaries import summarize_values
from rollstream.transport.policy_leases import policy_lease
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings


class StoppedError(Exception):
    """Somebody asked to stop; what was sampled is in the log, and the same call goes on with it."""


async def evaluate(
    settings: EvaluationSettings,
    policy: PolicyFacts,
    kafka: KafkaSettings,
    *,
    stop: asyncio.Event,
    on_progress: OnProgress,
) -> Evaluation:
    """Evaluate a policy. While it runs, collection of old policies leaves its files. Safe to repeat.

    Raises:
        SettingsError: data, options or own functions are wrong.
        StoppedError: ``stop`` was set before everything was there.
        TransientError: the broker was away for too long; repeat to go on.
    """
    started_at = time.time()
    context = EvaluationContext(settings, policy, kafka, stop=stop, on_progress=on_progress)
    if not policy.uri:
        metrics = await _measured(context)
    else:
        held = PolicyVersion(
            version=policy.version, lineage=policy.lineage, uri=policy.uri, manifest_sha256=policy.manifest_sha256
        )
        holder = f"evaluation/{settings.name}/{platform.node()}/{os.getpid()}"
        async with Publisher(kafka) as publisher, policy_lease(publisher, holder, held):
            metrics = await _measured(context)
    if context.is_stopped:
        raise StoppedError
    return _evaluation(context, metrics, started_at)


async def _measured(context: EvaluationContext) -> dict[str, MetricSummary]:
    """Run it; what an own evaluator returns, summed up."""
    settings = context.settings
    if settings.evaluator is None:
        await context.rollout_data()
        return {}
    found = load_function(settings.evaluator, kind="evaluator")(context)
    metrics: Any = await _returned(found, context) if inspect.isawaitable(found) else found
    if not isinstance(metrics, Mapping):
        raise SettingsError(f"evaluator {settings.evaluator!r} returned {metrics!r}, expected metrics by name")
    return {
        str(name): _own_summary(str(name), value, settings)
        for name, value in cast("Mapping[object, object]", metrics).items()
    }


async def _returned(found: Awaitable[object], context: EvaluationContext) -> object:
    """What an own evaluator comes to. Rollouts end in time by themselves; what it does besides may take as long."""
    deadline = asyncio.timeout(2 * context.settings.timeout_s)
    try:
        async with deadline:
            return await found
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise SettingsError(
            f"evaluator {context.settings.evaluator!r} did not return within {2 * context.settings.timeout_s:g} s, "
            "twice the time-out: raise --timeout, or look what it waits for"
        ) from error


def _own_summary(name: str, value: object, settings: EvaluationSettings) -> MetricSummary:
    """A number, or one per prompt."""
    values = list(cast("Sequence[object]", value)) if isinstance(value, Sequence) else [value]
    if not values or not all(isinstance(v, int | float) and abs(v) < float("inf") for v in values):
        raise SettingsError(
            f"metric {name!r} of evaluator {settings.evaluator!r} is {value!r}, expected a finite number or one per "
            "prompt"
        )
    return summarize_values(
        [float(v) for v in cast("list[float]", values)],
        seed=settings.bootstrap_seed,
        confidence=settings.confidence,
        draws=settings.bootstrap_draws,
    )


def _evaluation(context: EvaluationContext, metrics: dict[str, MetricSummary], started_at: float) -> Evaluation:
    settings, episodes, outcomes = context.settings, context.episodes, context.outcomes
    own = [episode for episode in episodes if not episode.is_foreign]
    prompts = prompt_results(
        own, ks=settings.pass_ks, pass_threshold=settings.pass_threshold, has_pass_hat=settings.has_pass_hat
    )
    statuses = Counter(episode.status for episode in own)
    return Evaluation(
        name=settings.name,
        run_ids=[outcome.run_id for outcome in outcomes],
        policy=context.policy,
        episodes=EpisodeCounts(
            wanted=sum(outcome.wanted for outcome in outcomes),
            completed=statuses["completed"],
            truncated=statuses["truncated"],
            aborted=statuses["aborted"],
            failed=statuses["failed"],
            mixed=len(episodes) - len(own),
            missing=sum(outcome.missing for outcome in outcomes),
            unscored=sum(e.reward is None and e.status in ("completed", "truncated") for e in own),
        ),
        environments=summarize_environments(
            prompts,
            seed=settings.bootstrap_seed,
            confidence=settings.confidence,
            draws=settings.bootstrap_draws,
        ),
        prompts=prompts,
        metrics=metrics,
        missing_places=[place for outcome in outcomes for place in outcome.missing_places],
        errors=dict(Counter(episode.error for episode in own if episode.error)),
        data_digests=dict(context.data_digests),
        settings=recorded_settings(settings),
        models=sorted({episode.model for episode in episodes if episode.model}),
        tokenizers=sorted({episode.tokenizer_hash for episode in episodes if episode.tokenizer_hash}),
        started_at=started_at,
        finished_at=time.time(),
    )


def recorded_settings(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings for the report, with all defaults of what decides how tasks look."""
    shown = shown_settings(settings)
    if settings.data:
        tasks = settings.producer(settings.data, run_id="recorded")
        shown["tasks"] = {
            **shown_settings(tasks),
            "sampling": msgspec.to_builtins(tasks.sampling),
            "limits": msgspec.to_builtins(tasks.limits),
            "tools": settings.tasks.get("tools", []),
        }
        for decided in ("source", "run_id", "group_size", "is_train", "is_paced", "epochs", "policy"):
            shown["tasks"].pop(decided, None)
    return shown
