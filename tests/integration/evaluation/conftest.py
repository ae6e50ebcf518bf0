"""Evaluations on a real broker: data, a scripted worker that knows some answers, and workers that stand in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rollstream.cli.evaluation.flow import evaluate
from rollstream.cli.evaluation.rollouts import OnProgress, RolloutProgress
from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.scripted_engine import LatencyProfile
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.evaluation import Evaluation
from rollstream.trainers.evaluation.report import PolicyFacts
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.control import control_key
from rollstream.transport.policy_files import seal_policy
from rollstream.transport.policy_manifest import PolicyIdentity
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

DEADLINE_S = 60.0
PROMPTS = 6
BASE = PolicyFacts(asked_for="base", lineage=0, version=0)
SCRIPT = """
import re

def sometimes_right(prompt):
    number = int(re.search(r"What is (\\d+)", prompt.text)[1])
    return f"The answer is {2 * number if prompt.rng.random() < number / 5 else -1}."
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules can be imported, as the folder that the command is called in; with the worker's script."""
    (tmp_path / "evaluated_script.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]  -- pytest does not say its type
    return tmp_path


@pytest.fixture
def data(here: Path) -> str:
    """Question n asks for 2n; the script knows the answer with a chance of n/5."""
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(PROMPTS)]
    path = here / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def evaluation_settings(data: str) -> Callable[..., EvaluationSettings]:
    def make(**values: Any) -> EvaluationSettings:
        known: dict[str, Any] = {"name": "sums", "data": data, "samples": 4, "timeout_s": DEADLINE_S, **values}
        return EvaluationSettings.model_validate({"tasks": {"reward": "numeric"}, **known})

    return make


def _unshown(_: RolloutProgress) -> None:
    return None


@pytest.fixture
def evaluated(kafka: KafkaSettings) -> Callable[..., Any]:
    """Run one evaluation to its end."""

    async def run(
        settings: EvaluationSettings,
        policy: PolicyFacts = BASE,
        *,
        stop: asyncio.Event | None = None,
        on_progress: OnProgress = _unshown,
    ) -> Evaluation:
        return await evaluate(settings, policy, kafka, stop=stop or asyncio.Event(), on_progress=on_progress)

    return run


@pytest.fixture
def scripted_worker(kafka: KafkaSettings, here: Path) -> Callable[..., AbstractAsyncContextManager[None]]:
    """A real worker whose engine says what the script says."""

    @asynccontextmanager
    async def work(*, token_s: float = 0.0, max_running: int = 64) -> AsyncGenerator[None]:
        settings = RolloutWorkerSettings(
            engine=ScriptedSettings(script="evaluated_script:sometimes_right", latency=LatencyProfile(token_s=token_s)),
            worker_id="w",
            max_running_episodes=max_running,
            policy_cache=here / "policies",
            drain_s=1.0,
        )
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(run_rollout_worker(settings, kafka, stop))
            try:
                yield
            finally:
                stop.set()

    return work


@pytest.fixture
def read_trajectories(kafka: KafkaSettings) -> Callable[..., Any]:
    """All trajectories that are in the log now, the first with each id."""

    async def read() -> list[Trajectory]:
        found: dict[str, Trajectory] = {}
        async with TrajectoryLog(kafka) as log:
            left = sum((await log.end_offsets()).values())
            await log.seek({})
            async with asyncio.timeout(DEADLINE_S):
                while left > 0:  # more may have come since it was asked
                    records = await log.fetch(timeout_s=0.5)
                    left -= len(records)
                    for record in records:
                        trajectory = decode_record(record, Trajectory)
                        found.setdefault(trajectory.trajectory_id, trajectory)
        return list(found.values())

    return read


@pytest.fixture
def read_tasks(kafka: KafkaSettings) -> Callable[..., Any]:
    """The first ``count`` tasks of the log, waited for."""

    async def read(count: int) -> list[RolloutTask]:
        consumer = await start_consumer(kafka, kafka.topic("tasks"), auto_offset_reset="earliest")
        try:
            found: list[RolloutTask] = []
            async with asyncio.timeout(DEADLINE_S):
                while len(found) < count:
                    for records in (await consumer.getmany(timeout_ms=200)).values():  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  -- aiokafka
                        found += [decode_record(record, RolloutTask) for record in records]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  -- aiokafka
            return found
        finally:
            await stop_consumer(consumer)

    return read


@pytest.fixture
def announce(kafka: KafkaSettings, tmp_path: Path) -> Callable[..., Any]:
    """Seal and announce a version, as a trainer does; returns the announcement."""

    async def say(lineage: int, version: int) -> PolicyVersion:
        directory = tmp_path / "weights" / f"{lineage}-{version}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.safetensors").write_bytes(f"weights {lineage}:{version}".encode())
        digest = seal_policy(directory, PolicyIdentity(lineage, version))
        policy = PolicyVersion(lineage=lineage, version=version, uri=str(directory), manifest_sha256=digest)
        async with Publisher(kafka) as publisher:
            await publisher.publish(policy, key=control_key(policy))
        return policy

    return say
