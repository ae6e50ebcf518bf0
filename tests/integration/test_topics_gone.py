"""Topics deleted or made anew, and tasks deleted before anybody has run them: never in silence."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)
# ruff: noqa: ASYNC110  -- a topic that goes announces itself to nobody

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.scripted_engine import LatencyProfile
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas import ids
from rollstream.schemas.errors import DataLossError
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.transport.clients import admin_client, start_consumer, stop_consumer
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics
from rollstream.transport.topic_watch import watch_topics

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

DEADLINE_S = 60.0


async def send_tasks(kafka: KafkaSettings, numbers: range, partition: int = 0) -> None:
    async with Publisher(kafka) as publisher:
        for number in numbers:
            task = RolloutTask(
                run_id="run",
                group_id=ids.group_id("run", number),
                group_index=number,
                group_size=1,
                member_index=0,
                trajectory_id=ids.trajectory_id("run", number, 0),
                messages=[ChatMessage(role="user", content=f"What is the time in city {number}?")],
            )
            await publisher.publish(task, key=task.group_id, partition=partition)


async def delete_before(kafka: KafkaSettings, offset: int) -> None:
    """As retention does."""
    async with admin_client(kafka) as admin:
        place = TopicPartition(kafka.topic("tasks"), 0)
        await admin.delete_records({place: RecordsToDelete(before_offset=offset)})


async def delete_topic(kafka: KafkaSettings, short: str) -> None:
    topic = kafka.topic(short)
    async with admin_client(kafka) as admin, asyncio.timeout(30):
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():
            await asyncio.sleep(0.05)


async def until_trajectories(kafka: KafkaSettings, count: int) -> None:
    consumer = await start_consumer(kafka)
    partitions = [TopicPartition(kafka.topic("trajectories"), p) for p in range(2)]
    try:
        async with asyncio.timeout(DEADLINE_S):
            while sum((await consumer.end_offsets(partitions)).values()) < count:
                await asyncio.sleep(0.05)
    finally:
        await stop_consumer(consumer)


@asynccontextmanager
async def rollout_worker(kafka: KafkaSettings, *, token_s: float = 0.001) -> AsyncGenerator[asyncio.Task[None]]:
    stop = asyncio.Event()
    engine = ScriptedSettings(latency=LatencyProfile(token_s=token_s))
    settings = RolloutWorkerSettings(engine=engine, worker_id="w", max_running_episodes=2, drain_s=2.0)
    working = asyncio.create_task(run_rollout_worker(settings, kafka, stop))
    try:
        yield working
    finally:
        stop.set()
        await asyncio.wait([working], timeout=30)
        working.cancel()


async def test_tasks_deleted_before_a_worker_has_read_them_are_counted_and_said(
    kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    await send_tasks(kafka, range(2))
    async with rollout_worker(kafka):
        await until_trajectories(kafka, 2)
    await send_tasks(kafka, range(2, 9))
    await delete_before(kafka, 7)
    async with rollout_worker(kafka):
        await until_trajectories(kafka, 4)
    assert "5 records of" in caplog.text
    assert "were deleted before anybody worked on them" in caplog.text


async def test_a_worker_works_on_what_is_in_a_topic_of_tasks_that_was_made_anew(kafka: KafkaSettings) -> None:
    """Kafka forgets the offsets of a group with the topic; that tasks are gone is for their producer to say."""
    await send_tasks(kafka, range(4))
    async with rollout_worker(kafka):
        await until_trajectories(kafka, 4)
    await delete_topic(kafka, "tasks")
    await apply_topics(kafka)
    await send_tasks(kafka, range(4, 6))
    async with rollout_worker(kafka):
        await until_trajectories(kafka, 6)


@pytest.mark.parametrize("what", ["deleted", "made anew"])
async def test_a_topic_that_goes_while_it_is_watched_is_an_error(kafka: KafkaSettings, what: str) -> None:
    await send_tasks(kafka, range(2))
    topics = [kafka.topic(short) for short in ("tasks", "journal", "control")]
    watching = asyncio.create_task(watch_topics(kafka, topics, every_s=2.0))
    try:
        await asyncio.wait([watching], timeout=1)
        assert not watching.done()
        await delete_topic(kafka, "tasks")
        if what == "made anew":
            await apply_topics(kafka)
        await asyncio.wait([watching], timeout=DEADLINE_S)
        assert watching.done()
        error = watching.exception()
        assert isinstance(error, DataLossError)
        assert kafka.topic("tasks") in str(error)
    finally:
        watching.cancel()
