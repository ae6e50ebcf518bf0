"""Topics applied, checked and listed on a real broker."""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import OffsetAndMetadata

from rollstream.schemas.control import Pause
from rollstream.schemas.errors import SettingsError
from rollstream.transport.clients import admin_client, start_consumer
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import (
    PartitionLag,
    apply_topics,
    check_topics,
    consumer_lag,
    list_topics,
)
from rollstream.transport.topic_differences import TopicDifference

pytestmark = pytest.mark.broker

DEADLINE_S = 30.0
PARTITIONS = {"tasks": 2, "tool-calls.default": 1, "tool-results": 2, "trajectories": 2, "dead-letters": 1}


@pytest_asyncio.fixture
async def nothing_yet(broker: str) -> AsyncIterator[KafkaSettings]:
    """A prefix without topics; those that appear are deleted."""
    settings = KafkaSettings(bootstrap=broker, prefix=f"admin-{uuid.uuid4().hex[:12]}.", partitions=PARTITIONS)
    yield settings
    names = [topic.name for topic in await list_topics(settings)]
    async with admin_client(settings) as admin:
        await admin.delete_topics(names)


def aspects(differences: list[TopicDifference]) -> list[tuple[str, str]]:
    return [(difference.topic, difference.aspect) for difference in differences]


async def test_apply_makes_everything_as_declared_and_is_safe_to_repeat(nothing_yet: KafkaSettings) -> None:
    kafka = nothing_yet
    assert {d.aspect for d in await check_topics(kafka)} == {"topic"}

    changes = await apply_topics(kafka)

    assert {change.topic for change in changes} == {topic.name for topic in kafka.topics.values()}
    assert await check_topics(kafka) == []
    assert await apply_topics(kafka) == []
    assert {t.name: t.partitions for t in await list_topics(kafka)} == {
        t.name: t.partitions for t in kafka.topics.values()
    }


async def test_several_processes_may_apply_at_once(nothing_yet: KafkaSettings) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(apply_topics(nothing_yet))

    assert await check_topics(nothing_yet) == []


async def test_topics_can_be_written_as_soon_as_they_are_applied(nothing_yet: KafkaSettings) -> None:
    await apply_topics(nothing_yet)
    async with Publisher(nothing_yet) as publisher:
        place = await publisher.publish(Pause(is_paused=True), key="pause", deadline_s=10)

    assert place.offset == 0


async def test_configs_changed_by_hand_are_explained_and_mended_together(kafka: KafkaSettings) -> None:
    name = kafka.topic("tasks")
    by_hand = {"retention.ms": "60000", "index.interval.bytes": "8192"}
    async with admin_client(kafka) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=by_hand)])

    found: dict[str, TopicDifference] = {}
    async with asyncio.timeout(DEADLINE_S):
        while not found:  # the broker shows a change a little later
            found = {difference.aspect: difference for difference in await check_topics(kafka)}
    assert set(found) == {"retention.ms", "index.interval.bytes", "compression.type", "max.message.bytes", "segment.ms"}
    assert found["retention.ms"].actual == "60000"
    assert found["retention.ms"].declared == kafka.topics["tasks"].config["retention.ms"]
    assert "inherited" in found["max.message.bytes"].explanation
    assert "not declared" in found["index.interval.bytes"].explanation

    changes = await apply_topics(kafka)
    assert {change.topic for change in changes} == {name}
    assert await check_topics(kafka) == []


async def test_partitions_are_added_only_when_asked(kafka: KafkaSettings) -> None:
    wider = kafka.model_copy(update={"partitions": {**kafka.partitions, "tool-results": 5}})
    wider = KafkaSettings.model_validate(wider.model_dump())

    assert await apply_topics(wider) == []
    assert aspects(await check_topics(wider)) == [(kafka.topic("tool-results"), "partitions")]

    [change] = await apply_topics(wider, grow=True)
    assert change.change == "grown from 4 to 5 partitions"
    assert await check_topics(wider) == []
    [too_many] = await check_topics(kafka)
    assert "5 partitions, only 4 are declared" in too_many.explanation
    assert too_many.repair is None
    assert await apply_topics(kafka, grow=True) == []


async def test_what_the_broker_refuses_is_said(nothing_yet: KafkaSettings) -> None:
    impossible = nothing_yet.model_copy(update={"replication_factor": 3})
    impossible = KafkaSettings.model_validate(impossible.model_dump())

    with pytest.raises(SettingsError, match=rf"create topic '{nothing_yet.prefix}.*replica"):
        await apply_topics(impossible)


async def test_other_prefixes_are_neither_listed_nor_touched(kafka: KafkaSettings) -> None:
    stranger = f"x{kafka.topic('tasks')}"
    async with admin_client(kafka) as admin:
        await admin.create_topics([NewTopic(stranger, 1, 1)])
        try:
            assert stranger not in {topic.name for topic in await list_topics(kafka)}
            assert await check_topics(kafka) == []
        finally:
            await admin.delete_topics([stranger])


async def test_lag_is_what_a_group_has_not_committed(kafka: KafkaSettings) -> None:
    topic, group = kafka.topic("tool-results"), kafka.group("readers")
    assert await consumer_lag(kafka, group) == []
    async with Publisher(kafka) as publisher:
        for partition in (0, 1, 1):
            await publisher.publish(Pause(is_paused=True), key="k", topic=topic, partition=partition)
    consumer = await start_consumer(kafka, group_id=group)
    consumer.assign([TopicPartition(topic, 0), TopicPartition(topic, 1)])
    await consumer.commit(
        {TopicPartition(topic, 0): OffsetAndMetadata(1, ""), TopicPartition(topic, 1): OffsetAndMetadata(1, "")}
    )
    await consumer.stop()

    lags = await consumer_lag(kafka, group)

    assert lags == [PartitionLag(topic, 0, 1, 0, 1), PartitionLag(topic, 1, 1, 0, 2)]
    assert [lag.lag for lag in lags] == [0, 1]
