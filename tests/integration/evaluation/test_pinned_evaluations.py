"""Evaluations of policies that are not the newest, on workers that follow the newest."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from rollstream.cli.evaluation.policies import choose_policy
from rollstream.cli.evaluation.rollouts import RolloutProgress
from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

Settings = Callable[..., EvaluationSettings]
Worker = Callable[..., AbstractAsyncContextManager[None]]


async def test_an_older_version_can_be_evaluated_while_workers_follow_the_newest(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, announce: Any, kafka: KafkaSettings
) -> None:
    await announce(1, 1)
    await announce(1, 2)
    async with scripted_worker():
        for asked_for in ("latest", "1:1", "base"):
            evaluation = await evaluated(evaluation_settings(samples=2), await choose_policy(asked_for, kafka))
            assert evaluation.episodes.completed == 12
            assert evaluation.episodes.is_whole


async def test_two_policies_are_evaluated_at_once_on_one_worker(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, announce: Any, kafka: KafkaSettings
) -> None:
    await announce(1, 1)
    await announce(1, 2)
    settings = evaluation_settings(samples=2)
    async with scripted_worker(), asyncio.TaskGroup() as group:
        running = [
            group.create_task(evaluated(settings, await choose_policy(asked_for, kafka)))
            for asked_for in ("1:1", "1:2")
        ]
    for evaluation in (task.result() for task in running):
        assert (evaluation.episodes.completed, evaluation.episodes.is_whole) == (12, True)


async def test_versions_that_are_announced_meanwhile_draw_no_token(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, announce: Any, kafka: KafkaSettings
) -> None:
    await announce(1, 1)
    begun = asyncio.Event()

    def see(progress: RolloutProgress) -> None:
        if progress.arrived:
            begun.set()

    async with scripted_worker(token_s=0.01, max_running=4), asyncio.TaskGroup() as group:
        policy = await choose_policy("latest", kafka)
        running = group.create_task(evaluated(evaluation_settings(), policy, on_progress=see))
        for version in (2, 3, 4):
            await begun.wait()
            await announce(1, version)
    evaluation = running.result()
    assert (evaluation.policy.label, evaluation.episodes.completed, evaluation.episodes.mixed) == ("1:1", 24, 0)


async def test_episodes_of_a_policy_whose_files_went_away_have_failed_and_say_why(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, announce: Any, kafka: KafkaSettings
) -> None:
    await announce(1, 1)
    policy = await choose_policy("1:1", kafka)
    shutil.rmtree(policy.uri)
    async with scripted_worker():
        evaluation = await evaluated(evaluation_settings(samples=1), policy)
    assert (evaluation.episodes.failed, evaluation.episodes.completed) == (6, 0)
    assert "reward" not in evaluation.environments["sums.jsonl"]
    assert any("1-1" in error for error in evaluation.errors)
