"""Bytes of all sorts on every topic, before and while everything runs: nothing stops, nothing is lost."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import zstandard

from rollstream.producers.service import RunProgress, produce
from rollstream.producers.settings import ProducerSettings
from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.scripted_engine import LatencyProfile
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.ids import trajectory_id
from rollstream.schemas.registry import MESSAGES
from rollstream.tool_workers.registry import load_tools
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.transport.clients import start_consumer, start_producer, stop_consumer
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

GROUPS, GROUP_SIZE = 12, 2
SendUnreadable = Callable[..., Awaitable[None]]
Headers = list[tuple[str, bytes]]
EMPTY = msgspec.msgpack.encode({})


def headers(schema: str, **more: bytes) -> Headers:
    return [("schema", schema.encode()), ("schema_version", b"1"), *((k.replace("_", "-"), v) for k, v in more.items())]


def rubbish() -> list[tuple[bytes | None, Headers]]:
    found: list[tuple[bytes | None, Headers]] = [(None, []), (b"", []), (b"\xff\x00rubbish", []), (b"x" * 900_000, [])]
    for schema in [message.__name__ for message in MESSAGES] + ["Nothing"]:
        found += [
            (EMPTY, headers(schema)),
            (b"\xc1", headers(schema)),
            (msgspec.msgpack.encode({"run_id": 1, "worker_id": [], "version": "x"}), headers(schema)),
            (msgspec.msgpack.encode({b"run_id": b"\xc8"}), headers(schema)),
            (b"\x81\xa6run_id\xa1\xc8", headers(schema)),
            (b"\x91" * 5000, headers(schema)),
            (zstandard.compress(EMPTY)[:-2], headers(schema, content_encoding=b"zstd")),
            (EMPTY, headers(schema, content_encoding=b"br")),
            (EMPTY, [("schema", schema.encode()), ("schema_version", b"999")]),
            (EMPTY, headers(schema, traceparent=b"\xff\xfe")),
        ]
    return found


async def throw_rubbish(kafka: KafkaSettings, send_unreadable: SendUnreadable) -> None:
    """All of it on every topic, and an unreadable record on every partition."""
    producer = await start_producer(kafka, profile="rpc")
    for topic in kafka.topics.values():
        for number, (value, attached) in enumerate(rubbish()):
            await producer.send(topic.name, value, b"\xfe", number % topic.partitions, headers=attached)
        for partition in range(topic.partitions):
            await send_unreadable(producer, topic.name, partition)
    await producer.stop()


@asynccontextmanager
async def roles(kafka: KafkaSettings) -> AsyncGenerator[None]:
    """A rollout worker and a tool worker for as long as the block runs."""
    stop = asyncio.Event()
    engine = ScriptedSettings(latency=LatencyProfile(token_s=0.01))
    rollout = RolloutWorkerSettings(engine=engine, worker_id="r", max_running_episodes=4, drain_s=5)
    tools = ToolWorkerSettings(tools=("calculator",), worker_id="t", drain_s=5)
    async with asyncio.TaskGroup() as group:
        group.create_task(run_rollout_worker(rollout, kafka, stop))
        group.create_task(run_tool_worker(tools, kafka, stop))
        yield
        stop.set()


async def emit(kafka: KafkaSettings, folder: Path) -> RunProgress:
    source = folder / "tasks.jsonl"
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(GROUPS)]
    source.write_text("\n".join(map(json.dumps, rows)))
    settings = ProducerSettings(
        source=str(source),
        run_id="run",
        tools=tuple(load_tools(["calculator"]).specs()),
        reward="numeric",
        group_size=GROUP_SIZE,
        is_paced=False,
    )
    return await produce(settings, kafka, asyncio.Event())


async def buried(kafka: KafkaSettings, topic: str) -> set[tuple[int, int]]:
    """Places in ``topic`` that have a dead letter."""
    consumer = await start_consumer(kafka, kafka.topic("dead-letters"))
    reader = SteadyReader(consumer)
    places: set[tuple[int, int]] = set()
    while records := await reader.read(timeout_s=2):
        for record in records:
            with suppress(InvalidMessageError):  # rubbish lies here too
                letter = decode_record(record, DeadLetter)
                if letter.origin_topic == topic:
                    places.add((letter.origin_partition, letter.origin_offset))
    await stop_consumer(consumer)
    return places


async def test_rubbish_on_every_topic_stops_nothing_and_loses_nothing(
    kafka: KafkaSettings, tmp_path: Path, send_unreadable: SendUnreadable
) -> None:
    await throw_rubbish(kafka, send_unreadable)
    thrown = len(rubbish()) + kafka.topics["tasks"].partitions
    first = await emit(kafka, tmp_path)
    trained: list[str] = []
    rewards: set[float | None] = set()
    async with roles(kafka), AsyncTrajectoryStream(kafka, groups_per_batch=2, run_id="run") as stream:
        async for batch in stream:
            if not trained:
                await throw_rubbish(kafka, send_unreadable)
            for group in batch.groups:
                trained += [trajectory.trajectory_id for trajectory in group.trajectories]
                rewards |= {trajectory.reward for trajectory in group.trajectories}
        async with asyncio.timeout(30):
            while len(await buried(kafka, kafka.topic("tasks"))) < 2 * thrown:
                pass
    second = await emit(kafka, tmp_path)

    expected = {trajectory_id("run", group, member) for group in range(GROUPS) for member in range(GROUP_SIZE)}
    assert first.tasks_sent == len(expected)
    assert len(trained) == len(set(trained))
    assert set(trained) == expected
    assert rewards == {1.0}
    assert (second.tasks_sent, second.tasks_found) == (0, len(expected))
