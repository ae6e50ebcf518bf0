"""GroupIntake on a real broker: at least once, in any order of completion, over rebalances."""
# pyright: reportUnknownMemberType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition

from rollstream.schemas.errors import SettingsError
from rollstream.transport.clients import start_producer
from rollstream.transport.intake import GroupIntake
from rollstream.transport.records import Record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import consumer_lag

pytestmark = pytest.mark.broker


async def fill(kafka: KafkaSettings, per_partition: int) -> None:
    producer = await start_producer(kafka, profile="durable")
    topic = kafka.topic("tasks")
    for partition in range(kafka.topics["tasks"].partitions):
        for number in range(per_partition):
            await producer.send_and_wait(topic, str(number).encode(), key=b"k", partition=partition)
    await producer.stop()


@asynccontextmanager
async def member(kafka: KafkaSettings, instance_id: str | None = None) -> AsyncGenerator[GroupIntake]:
    intake = GroupIntake(kafka, [kafka.topic("tasks")], group_id=f"{kafka.prefix}group", instance_id=instance_id)
    async with intake, asyncio.TaskGroup() as group:
        committing = group.create_task(intake.run())
        yield intake
        committing.cancel()


async def take(intake: GroupIntake, count: int) -> list[Record]:
    taken: list[Record] = []
    async with asyncio.timeout(30):
        while len(taken) < count:
            taken += await intake.poll(max_records=count - len(taken), timeout_s=0.2)
    return taken


def finish(intake: GroupIntake, records: list[Record]) -> None:
    for record in records:
        intake.finished(TopicPartition(record.topic, record.partition), record.offset)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 -- the broker settles a rebalance, there is no event to wait for
            await asyncio.sleep(0.05)


async def committed(kafka: KafkaSettings) -> dict[int, int | None]:
    return {lag.partition: lag.committed for lag in await consumer_lag(kafka, f"{kafka.prefix}group")}


async def test_what_is_not_finished_is_delivered_to_the_next_owner_and_nothing_else(kafka: KafkaSettings) -> None:
    await fill(kafka, per_partition=5)
    async with member(kafka) as first:
        records = await take(first, 20)
        unfinished = [record for record in records if (record.partition, record.offset) in {(0, 2), (1, 4)}]
        finish(first, [record for record in records if record not in unfinished])
    async with member(kafka) as second:
        again = await take(second, 4)
        assert await second.poll(max_records=5, timeout_s=1) == []
    assert sorted((r.partition, r.offset) for r in again) == [(0, 2), (0, 3), (0, 4), (1, 4)]


async def test_the_committed_offset_is_the_lowest_unfinished_one(kafka: KafkaSettings) -> None:
    await fill(kafka, per_partition=4)
    async with member(kafka) as intake:
        records = await take(intake, 16)
        finish(intake, [record for record in records if record.offset != 1])
    assert await committed(kafka) == dict.fromkeys(range(4), 1)


async def test_a_member_that_joins_takes_a_share_and_the_rest_keeps_running(kafka: KafkaSettings) -> None:
    await fill(kafka, per_partition=3)
    lost: list[TopicPartition] = []
    first = GroupIntake(
        kafka, [kafka.topic("tasks")], group_id=f"{kafka.prefix}group", on_lost=lambda gone: lost.extend(gone)
    )
    async with first, asyncio.TaskGroup() as group:
        committing = group.create_task(first.run())
        records = await take(first, 12)
        async with member(kafka) as second:
            await until(lambda: len(first.partitions) == 2 and len(second.partitions) == 2)
            assert frozenset(lost) == second.partitions
            # What stayed is recognised although Kafka delivers it again; what left is delivered to the new owner.
            assert await first.poll(max_records=20, timeout_s=1) == []
            moved = await take(second, 6)
            finish(first, records)
            finish(second, moved)
        committing.cancel()
    assert await committed(kafka) == dict.fromkeys(range(4), 3)


async def test_a_static_member_that_restarts_gets_its_partitions_back(kafka: KafkaSettings) -> None:
    await fill(kafka, per_partition=1)
    async with member(kafka, instance_id="worker-0") as first:
        await take(first, 4)
        owned = first.partitions
    async with member(kafka, instance_id="worker-0") as second:
        await until(lambda: second.partitions == owned)
        assert len(await take(second, 4)) == 4


async def test_two_processes_with_one_instance_id_are_refused(kafka: KafkaSettings) -> None:
    async with member(kafka, instance_id="worker-0"):
        with pytest.raises(SettingsError, match="'worker-0' is in use by another process"):
            async with member(kafka, instance_id="worker-0"):
                pass
