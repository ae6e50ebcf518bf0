"""Many more sessions than a tool worker has places: they wait for one another, and nobody's attempt fails for it."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas import ids
from rollstream.schemas.errors import TransientError
from rollstream.schemas.tasks import ChatMessage, EpisodeLimits, RolloutTask, ToolSpec
from rollstream.schemas.tools import SessionEnd, ToolCall, ToolResult
from rollstream.schemas.trajectories import Trajectory
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.transport.clients import start_consumer
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tool_client import ToolClient

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(240)]

PLACES = 16
EPISODES = 600
SCRIPT = """
from rollstream.rollout_workers.scripts import conversation

CALLS = [
    '<tool_call>{"name": "bash", "arguments": {"command": "echo kept > note"}}</tool_call>',
    '<tool_call>{"name": "bash", "arguments": {"command": "cat note"}}</tool_call>',
]

def say(prompt):
    answers = sum(role == "tool" for role, _ in conversation(prompt.ids))
    return CALLS[answers] if answers < len(CALLS) else "Done."
"""
PARAMETERS = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}


def task(index: int) -> RolloutTask:
    return RolloutTask(
        run_id="run",
        group_id=ids.group_id("run", index),
        group_index=index,
        group_size=1,
        member_index=0,
        trajectory_id=ids.trajectory_id("run", index, 0),
        messages=[ChatMessage(role="user", content="Keep a note.")],
        tools=[ToolSpec(name="bash", description="", parameters=PARAMETERS, is_stateful=True)],
        limits=EpisodeLimits(tool_timeout_s=10),
    )


@asynccontextmanager
async def tool_worker(kafka: KafkaSettings, **settings: Any) -> AsyncGenerator[None]:
    fields: dict[str, Any] = {
        "tools": ("bash",), "isolation": "unsafe-local", "worker_id": f"tools-{uuid.uuid4().hex[:8]}", "drain_s": 1.0,
        "reclaimable_after_s": 3600.0, **settings,
    }  # fmt: skip
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_tool_worker(ToolWorkerSettings(**fields), kafka, stop))
        try:
            yield
        finally:
            stop.set()


@asynccontextmanager
async def rollout_worker(kafka: KafkaSettings, **settings: Any) -> AsyncGenerator[None]:
    fields: dict[str, Any] = {
        "engine": ScriptedSettings(script="note_script:say"), "worker_id": "w", "drain_s": 1.0, **settings,
    }  # fmt: skip
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_rollout_worker(RolloutWorkerSettings(**fields), kafka, stop))
        try:
            yield
        finally:
            stop.set()


async def trajectories(kafka: KafkaSettings, count: int) -> dict[str, Trajectory]:
    consumer = await start_consumer(kafka, kafka.topic("trajectories"), auto_offset_reset="earliest")
    found: dict[str, Trajectory] = {}
    try:
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    trajectory = decode_record(record, Trajectory)
                    found[trajectory.trajectory_id] = trajectory
    finally:
        await consumer.stop()
    return found


async def test_hundreds_of_short_episodes_pass_through_a_few_places_and_none_fails(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note_script.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(str(tmp_path))
    async with Publisher(kafka) as publisher, asyncio.TaskGroup() as group:
        for each in map(task, range(EPISODES)):
            partition = ids.group_partition(each.group_id, kafka.topics["tasks"].partitions)
            group.create_task(publisher.publish(each, key=each.group_id, partition=partition))
    async with tool_worker(kafka, max_sessions=PLACES), rollout_worker(kafka, max_running_episodes=200):
        async with asyncio.timeout(200):
            found = await trajectories(kafka, EPISODES)
    assert {each.status for each in found.values()} == {"completed"}
    assert {(each.attempt, each.infra_failures) for each in found.values()} == {(1, 0)}


def call(session_id: str, **fields: Any) -> ToolCall:
    defaults: dict[str, Any] = {
        "call_id": uuid.uuid4().hex, "session_id": session_id, "turn": 0, "token": None,
        "deadline": time.time() + 30, "timeout_s": 5.0, "reply_topic": "", "reply_partition": 0,
    }  # fmt: skip
    return ToolCall(tool="bash", arguments='{"command": "echo x >> f; wc -l < f"}', **(defaults | fields))


async def session_of(client: ToolClient, session_id: str) -> ToolResult:
    result = await client.call(call(session_id), "default")
    assert (result.status, result.content.strip()) == ("ok", "1")
    return result


async def test_a_call_waits_for_its_place_far_beyond_its_own_time(kafka: KafkaSettings) -> None:
    async with (
        tool_worker(kafka, max_sessions=1),
        ToolClient(kafka, worker_id="a", resend_after_s=0.3) as client,
        asyncio.timeout(60),
        asyncio.TaskGroup() as group,
    ):
        await session_of(client, "first")
        began = time.time()
        waiting = group.create_task(client.call(call("second", deadline=began + 1.0), "default"))
        done, _ = await asyncio.wait([waiting], timeout=6)
        assert not done
        assert client.stats.busy >= 3
        client.end_session("first", "default")
        answer = await waiting
        assert (answer.status, answer.content.strip()) == ("ok", "1")
        assert time.time() - began > 6


async def test_a_house_that_stays_full_is_given_up_and_said(kafka: KafkaSettings) -> None:
    async with tool_worker(kafka, max_sessions=1), ToolClient(kafka, worker_id="a", max_put_off_s=1.0) as client:
        await session_of(client, "first")
        with pytest.raises(TransientError, match="full house"):
            await client.call(call("second", deadline=time.time() + 1.0), "default")


async def test_more_calls_than_may_wait_are_served_in_the_end(kafka: KafkaSettings) -> None:
    async def one_session(client: ToolClient, name: str) -> None:
        await session_of(client, name)
        client.end_session(name, "default")

    async with (
        tool_worker(kafka, max_sessions=2, max_running_calls=4, max_waiting_calls=2),
        ToolClient(kafka, worker_id="a", resend_after_s=0.3) as client,
        asyncio.timeout(60),
        asyncio.TaskGroup() as group,
    ):
        for number in range(30):
            group.create_task(one_session(client, f"s{number}"))
    assert client.stats.unanswered == 0


async def test_a_late_or_repeated_end_of_a_session_and_one_of_a_stranger_do_no_harm(kafka: KafkaSettings) -> None:
    async with (
        Publisher(kafka) as publisher,
        tool_worker(kafka, max_sessions=2),
        ToolClient(kafka, worker_id="a") as client,
        asyncio.timeout(60),
    ):

        async def end(name: str) -> None:
            topic = kafka.topic("tool-calls.default")
            await publisher.publish(SessionEnd(session_id=name), topic=topic, key=name)

        await session_of(client, "other")
        for name in ("stranger", "s", "s"):
            await end(name)
        answer = await session_of(client, "s")
        for _ in range(2):
            await end("s")
        lost = await client.call(call("s", turn=1, token=answer.token), "default")
        assert lost.status == "session_lost"
        await session_of(client, "s")
        assert (await client.call(call("other"), "default")).content.strip() == "2"


async def test_the_last_ends_leave_with_their_client(kafka: KafkaSettings) -> None:
    async with ToolClient(kafka, worker_id="a") as client:
        for number in range(20):
            client.end_session(f"s{number}", "default")
    consumer = await start_consumer(kafka, kafka.topic("tool-calls.default"), auto_offset_reset="earliest")
    ended: set[str] = set()
    try:
        async with asyncio.timeout(20):
            while len(ended) < 20:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    ended |= {decode_record(record, SessionEnd).session_id for record in records}
    finally:
        await consumer.stop()
