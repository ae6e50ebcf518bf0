"""The publisher on a real broker: what it returns for is in the log, and what it refuses it names."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from rollstream.schemas.control import Pause
from rollstream.schemas.errors import InvalidMessageError, SettingsError, TransientError
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.messages import Message
from rollstream.schemas.tools import ToolResult
from rollstream.transport.clients import Profile, admin_client, start_consumer
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.publisher import Publisher, RecordPlace
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics, check_topics

pytestmark = pytest.mark.broker


def result(number: int, content: str = "") -> ToolResult:
    return ToolResult(call_id=f"call-{number}", session_id=None, status="ok", content=content)


def entry(size_bytes: int) -> JournalRecord:
    noise = np.random.default_rng(0).bytes(size_bytes)
    return JournalRecord(kind="effect", trajectory_id="t", attempt=1, key="0", writer="w", birth=0, payload=noise)


async def read(kafka: KafkaSettings, topic: str, count: int) -> list[Record]:
    consumer = await start_consumer(kafka, topic)
    records: list[Record] = []
    try:
        async with asyncio.timeout(30):
            while len(records) < count:
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    records += cast("list[Record]", batch)
    finally:
        await consumer.stop()
    return records


async def publish_all(publisher: Publisher, messages: list[ToolResult]) -> list[RecordPlace]:
    async with asyncio.TaskGroup() as tasks:
        sending = [tasks.create_task(publisher.publish(message, key=message.call_id)) for message in messages]
    return [task.result() for task in sending]


@pytest.mark.parametrize("profile", ["durable", "rpc"])
async def test_every_message_lies_where_publish_says(kafka: KafkaSettings, profile: Profile) -> None:
    messages = [result(number, "x" * (number * 500)) for number in range(100)]
    async with Publisher(kafka, profile=profile) as publisher:
        places = await publish_all(publisher, messages)

    records = await read(kafka, kafka.topic("tool-results"), len(messages))
    by_place = {RecordPlace(r.topic, r.partition, r.offset): decode_record(r, ToolResult) for r in records}
    assert [by_place[place] for place in places] == messages
    assert {record.key for record in records} == {message.call_id.encode() for message in messages}


async def test_partition_and_topic_can_be_chosen(kafka: KafkaSettings) -> None:
    async with Publisher(kafka) as publisher:
        place = await publisher.publish(result(1), key="k", topic=kafka.topic("dead-letters"), partition=0)
        assert (place.topic, place.partition) == (kafka.topic("dead-letters"), 0)
        for partition in range(4):
            assert (await publisher.publish(result(2), key="k", partition=partition)).partition == partition


async def test_a_partition_that_does_not_exist_is_named(kafka: KafkaSettings) -> None:
    async with Publisher(kafka) as publisher:
        with pytest.raises(InvalidMessageError, match=r"partition 99 of '.*tool-results'"):
            await publisher.publish(result(1), key="k", partition=99)


async def test_a_topic_that_is_not_declared_or_not_there_is_named(kafka: KafkaSettings) -> None:
    async with Publisher(kafka) as publisher:
        with pytest.raises(SettingsError, match="'tool-calls' is not declared"):
            await publisher.publish(_Stray(), key="k")
        with pytest.raises(TransientError, match=rf"{kafka.prefix}nowhere.*topics check"):
            await publisher.publish(result(1), key="k", topic=f"{kafka.prefix}nowhere", deadline_s=6)


async def test_large_messages_up_to_the_limit_arrive_whole(kafka: KafkaSettings) -> None:
    message = entry(kafka.topics["journal"].max_value_bytes - 4096)
    async with Publisher(kafka) as publisher:
        await publisher.publish(message, key="t")

    [record] = await read(kafka, kafka.topic("journal"), 1)
    assert decode_record(record, JournalRecord) == message


async def test_a_message_over_the_limit_names_topic_and_size(kafka: KafkaSettings) -> None:
    async with Publisher(kafka) as publisher:
        with pytest.raises(InvalidMessageError, match=r"JournalRecord of 18\d{6} bytes .* '.*journal'"):
            await publisher.publish(entry(18_000_000), key="t")


async def test_after_a_refused_message_the_same_partition_goes_on(kafka: KafkaSettings) -> None:
    """The broker's limit is lower than declared, so that only the broker can refuse."""
    topic = kafka.topic("journal")
    async with admin_client(kafka) as admin:
        await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, topic, configs={"max.message.bytes": "100000"})]
        )
    async with asyncio.timeout(30):
        while not await check_topics(kafka):
            pass
    async with Publisher(kafka, deadline_s=30) as publisher:
        await publisher.publish(entry(10), key="t", partition=0)
        with pytest.raises(InvalidMessageError, match="the broker refuses it"):
            await publisher.publish(entry(200_000), key="t", partition=0)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(publisher.publish(entry(10), key="t", partition=0))

    assert len(await read(kafka, topic, 21)) == 21


async def test_a_message_that_breaks_a_rule_is_not_sent(kafka: KafkaSettings) -> None:
    broken = ToolResult(call_id="", session_id=None, status="ok", content="")
    async with Publisher(kafka) as publisher:
        with pytest.raises(InvalidMessageError, match="call_id"):
            await publisher.publish(broken, key="k")
        place = await publisher.publish(result(1), key="k")

    assert place.offset == 0


async def test_the_trace_of_the_sender_travels_with_the_record(kafka: KafkaSettings) -> None:
    span = NonRecordingSpan(SpanContext(trace_id=7, span_id=8, is_remote=False))
    async with Publisher(kafka) as publisher:
        with trace.use_span(span):
            await publisher.publish(Pause(is_paused=True), key="pause")

    [record] = await read(kafka, kafka.topic("control"), 1)
    assert dict(record.headers)["traceparent"].startswith(b"00-" + b"7".rjust(32, b"0"))


async def test_more_messages_than_slots_are_all_acknowledged(kafka: KafkaSettings) -> None:
    async with Publisher(kafka, max_in_flight=2) as publisher:
        places = await publish_all(publisher, [result(number) for number in range(50)])

    assert len(set(places)) == 50


async def test_without_a_broker_starting_says_where_it_looked() -> None:
    kafka = KafkaSettings(bootstrap="127.0.0.1:1", start_timeout_s=0.5)
    with pytest.raises(TransientError, match=r"127.0.0.1:1.*rollstream broker status"):
        async with Publisher(kafka):
            pass


@pytest.mark.parametrize("profile", ["durable", "rpc"])
async def test_a_killed_broker_loses_nothing_that_was_acknowledged(tmp_path: Path, profile: Profile) -> None:
    with LocalBroker(BrokerSettings(data_dir=tmp_path / "broker", source="jars")) as broker:
        kafka = KafkaSettings(bootstrap=broker.bootstrap, partitions={"tool-results": 2})
        await apply_topics(kafka)
        sent: list[str] = []
        is_over = asyncio.Event()
        warm = asyncio.Event()

        async with Publisher(kafka, profile=profile, deadline_s=60) as publisher:

            async def send() -> None:
                number = 0
                while not is_over.is_set():
                    message = result(number)
                    number += 1
                    await publisher.publish(message, key=message.call_id)
                    sent.append(message.call_id)
                    warm.set()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send())
                await warm.wait()
                await asyncio.to_thread(broker.kill9)
                before = len(sent)
                with pytest.raises(TransientError, match="not acknowledged within 1 s"):
                    await publisher.publish(result(-1), key="k", deadline_s=1)
                await asyncio.to_thread(broker.start)
                deadline = time.monotonic() + 60
                while len(sent) <= before + 10:
                    assert time.monotonic() < deadline, "sending did not go on"
                    await asyncio.sleep(0.05)
                is_over.set()

        records = await read(kafka, kafka.topic("tool-results"), len(sent))
    assert set(sent) <= {decode_record(record, ToolResult).call_id for record in records}


class _Stray(Message, frozen=True, kw_only=True):
    topic = "tool-calls"
