"""An episode whose tool must not run twice: from the model's call to the trajectory, through a dying tool worker."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas import ids
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import ChatMessage, EpisodeLimits, RolloutTask, ToolSpec
from rollstream.schemas.trajectories import Trajectory
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.transport.clients import start_consumer
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(120)]

M = TypeVar("M", bound=Message)
TOOL = '''
import os, pathlib, signal
from rollstream.schemas.errors import TransientError
from rollstream.tool_workers.functions import tool

home = pathlib.Path(__file__).parent

@tool(is_idempotent=False)
def charge(amount: int) -> str:
    """Charge somebody."""
    with open(home / "effects", "a") as file:
        file.write("charged\\n")
    if (home / "die").exists():
        (home / "die").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (home / "doubt").exists():
        raise TransientError("no answer from the bank")
    return "charged"
'''
SCRIPT = """
from rollstream.rollout_workers.scripts import conversation

CALL = '<tool_call>{"name": "charge", "arguments": {"amount": 3}}</tool_call>'

def say(prompt):
    role, _ = conversation(prompt.ids)[-1]
    return "Done." if role == "tool" else CALL
"""
PARAMETERS = {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]}
TASK = RolloutTask(
    run_id="run",
    group_id=ids.group_id("run", 0),
    group_index=0,
    group_size=1,
    member_index=0,
    trajectory_id=ids.trajectory_id("run", 0, 0),
    messages=[ChatMessage(role="user", content="Charge them.")],
    tools=[ToolSpec(name="charge", description="", parameters=PARAMETERS, is_idempotent=False)],
    limits=EpisodeLimits(tool_timeout_s=20),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "charging_tool.py").write_text(TOOL)
    (tmp_path / "charging_script.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@asynccontextmanager
async def episode(kafka: KafkaSettings, infra_budget: int) -> AsyncGenerator[None]:
    """A rollout worker at work on the one task."""
    async with Publisher(kafka) as publisher:
        partition = ids.group_partition(TASK.group_id, kafka.topics["tasks"].partitions)
        await publisher.publish(TASK, key=TASK.group_id, partition=partition)
    settings = RolloutWorkerSettings(
        engine=ScriptedSettings(script="charging_script:say"), worker_id="w", drain_s=1, infra_budget=infra_budget
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_rollout_worker(settings, kafka, stop))
        try:
            yield
        finally:
            stop.set()


@asynccontextmanager
async def tool_worker(kafka: KafkaSettings, home: Path) -> AsyncGenerator[None]:
    settings = ToolWorkerSettings(tools=(str(home / "charging_tool.py"),), worker_id="t", drain_s=1)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_tool_worker(settings, kafka, stop))
        try:
            yield
        finally:
            stop.set()


@asynccontextmanager
async def mortal_tool_worker(kafka: KafkaSettings, home: Path) -> AsyncGenerator[Process]:
    partitions = "\n".join(f"{json.dumps(topic)} = {count}" for topic, count in kafka.partitions.items())
    config = home / "rollstream.toml"
    config.write_text(
        f'[kafka]\nbootstrap = "{kafka.bootstrap}"\nprefix = "{kafka.prefix}"\nsession_timeout_s = 3\n'
        f'[kafka.partitions]\n{partitions}\n[tool_worker]\ntools = ["{home / "charging_tool.py"}"]\n'
    )
    command = (sys.executable, "-m", "rollstream.cli.main", "--config", str(config), "tool-worker")
    with (home / "worker.log").open("wb") as log:
        worker = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        yield worker
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()


async def first(kafka: KafkaSettings, message_type: type[M]) -> M:
    consumer = await start_consumer(kafka, kafka.topic(message_type.topic))
    try:
        async with asyncio.timeout(60):
            while True:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    return decode_record(records[0], message_type)
    finally:
        await consumer.stop()


def effects(home: Path) -> int:
    return len((home / "effects").read_text().splitlines())


async def test_a_worker_killed_in_a_harmful_call_costs_an_attempt_and_the_call_is_not_run_again(
    kafka: KafkaSettings, home: Path
) -> None:
    (home / "die").touch()
    async with mortal_tool_worker(kafka, home) as mortal, episode(kafka, infra_budget=3):
        assert await mortal.wait() == -signal.SIGKILL
        assert effects(home) == 1
        async with tool_worker(kafka, home):
            trajectory = await first(kafka, Trajectory)
    assert trajectory.status == "completed"
    assert (trajectory.attempt, effects(home)) == (2, 2)  # one call in each attempt, each run once


async def test_a_task_that_ends_for_an_unknown_outcome_says_so(kafka: KafkaSettings, home: Path) -> None:
    (home / "doubt").touch()
    async with tool_worker(kafka, home), episode(kafka, infra_budget=2):
        trajectory = await first(kafka, Trajectory)
        letter = await first(kafka, DeadLetter)
    assert (trajectory.status, trajectory.stop_reason, trajectory.reward) == ("failed", "infrastructure", None)
    assert trajectory.error is not None
    for text in (trajectory.error.message, letter.error):
        assert "outcome_unknown" in text
        assert "no answer from the bank" in text
    assert effects(home) == 2
