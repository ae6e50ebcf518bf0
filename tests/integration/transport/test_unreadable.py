"""Records that only foreign producers can write: header names that are not UTF-8, compression by Kafka's own means."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false
# (aiokafka is only partly annotated; a batch it would not write itself is made from one it has built)

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable

import pytest
import zstandard
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.record._crecords.cutil import crc32c_cython

from rollstream.schemas.control import Pause
from rollstream.schemas.errors import UnsupportedSchemaError
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import admin_client, start_consumer, start_producer, stop_consumer
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.intake import GroupIntake
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics
from rollstream.transport.unreadable import SteadyReader, read_past_unreadable

pytestmark = pytest.mark.broker

SendUnreadable = Callable[..., Awaitable[None]]
CRC = slice(17, 21)
"""Where a record batch holds the checksum of what follows."""
LENGTH, ATTRIBUTES, RECORDS_AT = slice(8, 12), slice(21, 23), 61
ZSTD = 4


async def send_compressed(producer: AIOKafkaProducer, topic: str, *values: bytes) -> None:
    """A batch under Kafka's own zstd."""
    batch = producer.create_batch()
    for value in values:
        batch.append(key=b"k", value=value, timestamp=None)
    batch.close()
    plain = bytes(batch._build())
    built = bytearray(plain[:RECORDS_AT] + zstandard.compress(plain[RECORDS_AT:]))
    built[LENGTH] = struct.pack(">i", len(built) - LENGTH.stop)
    built[ATTRIBUTES] = struct.pack(">h", ZSTD)
    built[CRC] = struct.pack(">I", crc32c_cython(bytes(built[CRC.stop :])))
    batch._buffer = built
    await (await producer.send_batch(batch, topic, partition=0))


async def keep_compression(kafka: KafkaSettings, short: str) -> None:
    """Make the topic as one that somebody created otherwise than by `topics apply`."""
    declared = kafka.topics[short]
    config = {**declared.config, "compression.type": "producer"}
    async with admin_client(kafka) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, declared.name, configs=config)])


async def read_values(reader: SteadyReader, count: int) -> list[tuple[int, int, bytes | None]]:
    found: list[tuple[int, int, bytes | None]] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += [(r.partition, r.offset, r.value) for r in await reader.read(timeout_s=0.5)]
    return sorted(found)


async def test_what_others_compress_is_readable_because_the_broker_takes_it_apart(kafka: KafkaSettings) -> None:
    topic = kafka.topic("tasks")
    producer = await start_producer(kafka, profile="rpc")
    await send_compressed(producer, topic, b"one", b"two")
    await producer.stop()
    consumer = await start_consumer(kafka, topic)

    found = await read_values(SteadyReader(consumer), 2)
    await stop_consumer(consumer)

    assert found == [(0, 0, b"one"), (0, 1, b"two")]


async def test_a_topic_that_keeps_compression_is_read_past_it_record_by_record(kafka: KafkaSettings) -> None:
    topic = kafka.topic("tasks")
    await keep_compression(kafka, "tasks")
    producer = await start_producer(kafka, profile="rpc")
    consumer = await start_consumer(kafka, topic)
    reader = SteadyReader(consumer)
    end = 0
    async with asyncio.timeout(30):  # the broker heeds a changed config a little later
        kept = False
        while not kept:
            await send_compressed(producer, topic, b"one", b"two")
            end = (await consumer.end_offsets([TopicPartition(topic, 0)]))[TopicPartition(topic, 0)]
            kept = [r[2] for r in await read_values(reader, 2)] == [b"", b""]
    for partition in range(4):
        await producer.send_and_wait(topic, b"after", partition=partition)
    await producer.stop()

    found = await read_values(reader, 4)
    await stop_consumer(consumer)

    assert [(partition, value) for partition, _, value in found] == [(p, b"after") for p in range(4)]
    assert found[0][1] == end
    await apply_topics(kafka)


async def test_a_reader_of_many_partitions_gets_every_record_once(
    kafka: KafkaSettings, send_unreadable: SendUnreadable
) -> None:
    topic = kafka.topic("tasks")
    producer = await start_producer(kafka, profile="rpc")
    for partition in range(4):
        await producer.send_and_wait(topic, b"before", partition=partition)
    await send_unreadable(producer, topic)
    for partition in range(4):
        await producer.send_and_wait(topic, b"after", partition=partition)
    await producer.stop()
    consumer = await start_consumer(kafka, topic)

    found = await read_values(SteadyReader(consumer), 9)
    await stop_consumer(consumer)

    places = [(partition, offset) for partition, offset, _ in found]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]


async def test_one_unreadable_record_is_replaced_and_its_neighbours_are_read(
    kafka: KafkaSettings, send_unreadable: SendUnreadable
) -> None:
    topic = kafka.topic("tasks")
    producer = await start_producer(kafka, profile="rpc")
    await producer.send_and_wait(topic, b"before", partition=0)
    await send_unreadable(producer, topic)
    await producer.send_and_wait(topic, b"after", partition=0)
    await producer.stop()
    partition = TopicPartition(topic, 0)
    consumer = await start_consumer(kafka)
    consumer.assign([partition])
    with pytest.raises(UnicodeDecodeError):
        await consumer.getmany(timeout_ms=5000)

    before, stand_in = await read_past_unreadable(consumer, partition, timeout_s=5)
    [after] = (await consumer.getmany(timeout_ms=5000))[partition]
    await consumer.stop()

    assert (before.value, before.offset) == (b"before", 0)
    assert (stand_in.topic, stand_in.partition, stand_in.offset) == (topic, 0, 1)
    with pytest.raises(UnsupportedSchemaError, match="unreadable"):
        decode_record(stand_in, RolloutTask)
    assert (after.value, after.offset) == (b"after", 2)


async def test_the_control_follower_reads_on_behind_it(kafka: KafkaSettings, send_unreadable: SendUnreadable) -> None:
    pause = Pause(is_paused=True)
    async with Publisher(kafka) as publisher:
        await publisher.publish(pause, key=control_key(pause))
        producer = await start_producer(kafka, profile="rpc")
        await send_unreadable(producer, kafka.topic("control"))
        async with ControlFollower(kafka) as follower:
            assert follower.latest(Pause) == (pause, 0)
            await send_unreadable(producer, kafka.topic("control"))
            resume = Pause(is_paused=False)
            await publisher.publish(resume, key=control_key(resume))
            while follower.latest(Pause) != (resume, 3):
                assert await follower.wait_for_change(timeout_s=20)
        await producer.stop()


async def test_an_intake_hands_out_a_stand_in_and_every_other_record_once(
    kafka: KafkaSettings, send_unreadable: SendUnreadable
) -> None:
    topic = kafka.topic("tasks")
    producer = await start_producer(kafka, profile="rpc")
    for partition in range(4):
        await producer.send_and_wait(topic, b"before", partition=partition)
    await send_unreadable(producer, topic)
    for partition in range(4):
        await producer.send_and_wait(topic, b"after", partition=partition)
    await producer.stop()

    found: list[tuple[int, int]] = []
    async with GroupIntake(kafka, [topic], group_id=kafka.group("intake")) as intake, asyncio.timeout(30):
        while len(found) < 9:
            found += [(r.partition, r.offset) for r in await intake.poll(max_records=9, timeout_s=0.5)]

    assert sorted(found) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
