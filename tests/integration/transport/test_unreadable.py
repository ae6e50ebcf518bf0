"""Records with header names that are not UTF-8, which only foreign producers can write."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false
# (aiokafka is only partly annotated; a batch it would not write itself is made from one it has built)

from __future__ import annotations

import asyncio
import struct

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.record._crecords.cutil import crc32c_cython

from rollstream.schemas.control import Pause
from rollstream.schemas.errors import UnsupportedSchemaError
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import start_consumer, start_producer
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.intake import GroupIntake
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import read_past_unreadable

pytestmark = pytest.mark.broker

NAME = b"HEADER-NAME"
CRC = slice(17, 21)
"""Where a record batch holds the checksum of what follows."""


async def send_unreadable(producer: AIOKafkaProducer, topic: str) -> None:
    batch = producer.create_batch()
    batch.append(key=b"k", value=b"v", timestamp=None, headers=[(NAME.decode(), b"x")])
    batch.close()
    built = bytearray(batch._build())
    start = bytes(built).index(NAME)
    built[start : start + len(NAME)] = b"\xff" * len(NAME)
    built[CRC] = struct.pack(">I", crc32c_cython(bytes(built[CRC.stop :])))
    batch._buffer = built
    await (await producer.send_batch(batch, topic, partition=0))


async def test_one_unreadable_record_is_replaced_and_its_neighbours_are_read(kafka: KafkaSettings) -> None:
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


async def test_the_control_follower_reads_on_behind_it(kafka: KafkaSettings) -> None:
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


async def test_an_intake_hands_out_a_stand_in_and_every_other_record_once(kafka: KafkaSettings) -> None:
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
