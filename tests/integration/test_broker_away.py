"""A broker that is killed and does not come back: who waits for it learns it, who is told to leave leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rollstream.cli.status import gather_report
from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.scripted_engine import LatencyProfile
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas import ids
from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.errors import TransientError
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.schemas.tools import ToolCall
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.transport.control import ControlFollower
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tool_client import ANSWER_GRACE_S, ToolClient
from rollstream.transport.topic_admin import apply_topics

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(180)]

PARTITIONS = {"tasks": 2, "journal": 2, "tool-calls.default": 2, "tool-results": 2, "trajectories": 1}
DRAIN_S = 2.0
LEAVES_WITHIN_S = DRAIN_S + 20.0
Role = Callable[[KafkaSettings, asyncio.Event], Coroutine[Any, Any, None]]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalBroker]:
    with LocalBroker(BrokerSettings(data_dir=tmp_path / "broker", source="jars")) as broker:
        yield broker


@asynccontextmanager
async def topics(broker: LocalBroker) -> AsyncGenerator[KafkaSettings]:
    kafka = KafkaSettings(
        bootstrap=broker.bootstrap, prefix="away.", partitions=PARTITIONS, session_timeout_s=3, start_timeout_s=2
    )
    await apply_topics(kafka)
    async with Publisher(kafka) as publisher:
        for index in range(4):
            task = RolloutTask(
                run_id="run",
                group_id=ids.group_id("run", index),
                group_index=index,
                group_size=1,
                member_index=0,
                trajectory_id=ids.trajectory_id("run", index, 0),
                messages=[ChatMessage(role="user", content="What is the time?")],
            )
            await publisher.publish(task, key=task.group_id, partition=index % 2)
    yield kafka


async def test_an_observer_is_told_and_not_cancelled(broker: LocalBroker) -> None:
    async with topics(broker) as kafka:

        async def observe() -> None:
            async with ControlFollower(kafka) as control:
                await gather_report(kafka, control)
                await asyncio.to_thread(broker.kill9)
                await gather_report(kafka, control)

        with pytest.raises(TransientError, match="no working connection"):
            await observe()


async def rollout_worker(kafka: KafkaSettings, stop: asyncio.Event) -> None:
    engine = ScriptedSettings(latency=LatencyProfile(token_s=3.0))
    settings = RolloutWorkerSettings(engine=engine, worker_id="w", max_running_episodes=8, drain_s=DRAIN_S)
    await run_rollout_worker(settings, kafka, stop)


async def tool_worker(kafka: KafkaSettings, stop: asyncio.Event) -> None:
    await run_tool_worker(ToolWorkerSettings(tools=("calculator",), worker_id="w", drain_s=DRAIN_S), kafka, stop)


@pytest.mark.parametrize("role", [rollout_worker, tool_worker])
async def test_a_role_leaves_in_time(broker: LocalBroker, role: Role) -> None:
    stop = asyncio.Event()
    async with topics(broker) as kafka, asyncio.TaskGroup() as group:
        working = group.create_task(role(kafka, stop))
        async with ControlFollower(kafka) as control, asyncio.timeout(60):
            while "worker/w" not in control.all(WorkerStatus):
                await control.wait_for_change(timeout_s=5)
        await asyncio.to_thread(broker.kill9)
        stop.set()
        told = time.monotonic()
        await asyncio.wait([working], timeout=2 * LEAVES_WITHIN_S)
        took_s = time.monotonic() - told
        assert working.done()
        assert took_s < LEAVES_WITHIN_S


async def test_a_tool_call_does_not_grow_old_while_the_broker_is_away(broker: LocalBroker) -> None:
    allowed_s = 3.0
    async with topics(broker) as kafka, ToolClient(kafka, worker_id="c", resend_after_s=0.5) as client:
        call = ToolCall(
            call_id="call",
            session_id=None,
            turn=0,
            token=None,
            tool="calculator",
            arguments='{"expression": "6 * 7"}',
            deadline=time.time() + allowed_s,
            timeout_s=1.0,
            reply_topic="",
            reply_partition=0,
            trajectory_id="t",
        )
        await asyncio.to_thread(broker.kill9)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(client.call(call, "default"))
            await asyncio.wait([answer], timeout=allowed_s + 2 * ANSWER_GRACE_S)
            assert not answer.done()
            await asyncio.to_thread(broker.start)
            group.create_task(tool_worker(kafka, stop))
            async with asyncio.timeout(60):
                assert (await answer).content == "42"
            stop.set()
