"""Evaluations of the versions that a trainer announces, and of policies by their names."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from rollstream.cli.evaluation.curve import Curve
from rollstream.cli.evaluation.evaluating import Evaluating
from rollstream.cli.evaluation.policies import choose_policy
from rollstream.cli.evaluation.rollouts import RolloutProgress
from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.schemas.control import PolicyLease
from rollstream.schemas.errors import PolicyFilesError, SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.control import ControlFollower
from rollstream.transport.policy_files import seal_policy
from rollstream.transport.policy_manifest import PolicyIdentity
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

DEADLINE_S = 60.0
Settings = Callable[..., EvaluationSettings]
Worker = Callable[..., AbstractAsyncContextManager[None]]


def drawn_by(trajectories: list[Trajectory]) -> dict[str, set[tuple[int, int]]]:
    """By run, the policies that drew its tokens."""
    found: dict[str, set[tuple[int, int]]] = {}
    for trajectory in trajectories:
        spans = [span for sample in trajectory.samples for span in sample.version_spans]
        found.setdefault(trajectory.run_id, set()).update((span.lineage, span.version) for span in spans)
    return found


async def test_every_second_version_becomes_a_point_and_a_later_call_goes_on_after_the_last(
    tmp_path: Path,
    evaluation_settings: Settings,
    scripted_worker: Worker,
    announce: Any,
    kafka: KafkaSettings,
    read_trajectories: Any,
) -> None:
    path = tmp_path / "curve.jsonl"
    evaluating = Evaluating([evaluation_settings(samples=2)], kafka)
    await announce(1, 1)
    async with scripted_worker():
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(evaluating.follow(path, every=2, points=2))
            async with asyncio.timeout(DEADLINE_S):
                while len(await read_trajectories()) < 12:
                    assert not following.done()
            await announce(1, 2)
            await announce(1, 3)
            await following
        assert [point.evaluations[0].policy.label for point in Curve(path).points] == ["1:1", "1:3"]
        await announce(1, 4)
        await announce(1, 5)
        await Evaluating([evaluation_settings(samples=2)], kafka).follow(path, every=2, points=1)
    found = Curve(path).points
    assert [point.evaluations[0].policy.label for point in found] == ["1:1", "1:3", "1:5"]
    assert all(point.is_whole for point in found)
    drawn = drawn_by(await read_trajectories())
    assert [drawn[point.evaluations[0].run_ids[0]] for point in found] == [{(1, 1)}, {(1, 3)}, {(1, 5)}]


async def test_the_files_of_a_policy_are_held_while_it_is_evaluated(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, announce: Any, kafka: KafkaSettings
) -> None:
    policy = await announce(1, 1)
    held: list[PolicyLease] = []
    async with ControlFollower(kafka) as control, scripted_worker():

        def look(progress: RolloutProgress) -> None:
            held.extend(control.all(PolicyLease).values())

        await evaluated(evaluation_settings(samples=2), await choose_policy("latest", kafka), on_progress=look)
        assert {lease.manifest_sha256 for lease in held} == {policy.manifest_sha256}
        assert all(lease.until > 0 for lease in held)
        async with asyncio.timeout(DEADLINE_S):
            while any(lease.until > 0 for lease in control.all(PolicyLease).values()):
                await control.wait_for_change(timeout_s=1)


async def test_a_policy_is_found_by_its_version_by_its_place_and_beside_the_newest(
    announce: Any, kafka: KafkaSettings, tmp_path: Path
) -> None:
    assert (await choose_policy("latest", kafka)).label == "base"
    with pytest.raises(SettingsError, match="none has been announced yet"):
        await choose_policy("1:1", kafka)
    first, second = await announce(1, 1), await announce(1, 2)
    assert (await choose_policy("latest", kafka)).manifest_sha256 == second.manifest_sha256
    assert (await choose_policy("1:1", kafka)).uri == first.uri
    found = await choose_policy(first.uri, kafka)
    assert (found.label, found.manifest_sha256) == ("1:1", first.manifest_sha256)
    never_announced = tmp_path / "weights" / "0-9"
    shutil.copytree(first.uri, never_announced)
    seal_policy(never_announced, PolicyIdentity(0, 9))
    assert (await choose_policy("0:9", kafka)).uri == str(never_announced)
    with pytest.raises(SettingsError, match=r"'1:7' is unknown: the newest announced are \['1:2', '1:1'\]"):
        await choose_policy("1:7", kafka)
    shutil.rmtree(second.uri)
    with pytest.raises(PolicyFilesError, match="1-2"):
        await choose_policy("latest", kafka)


async def test_a_version_whose_files_are_gone_leaves_its_point_to_the_next(
    tmp_path: Path, evaluation_settings: Settings, scripted_worker: Worker, announce: Any, kafka: KafkaSettings
) -> None:
    path = tmp_path / "curve.jsonl"
    gone = await announce(1, 1)
    shutil.rmtree(gone.uri)
    async with asyncio.TaskGroup() as tasks, scripted_worker():
        following = tasks.create_task(
            Evaluating([evaluation_settings(samples=2)], kafka).follow(path, every=1, points=1)
        )
        await announce(1, 2)
        await following
    assert [point.evaluations[0].policy.label for point in Curve(path).points] == ["1:2"]
