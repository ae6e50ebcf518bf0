"""Burying on a real broker."""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
from typing import cast

import numpy as np
import pytest

from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import start_consumer, start_producer
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker


async def one_record(kafka: KafkaSettings, topic: str) -> Record:
    consumer = await start_consumer(kafka, topic)
    try:
        async with asyncio.timeout(30):
            return cast("Record", await consumer.getone())
    finally:
        await consumer.stop()


async def send(kafka: KafkaSettings, topic: str, value: bytes | None, key: bytes | None) -> None:
    producer = await start_producer(kafka)
    try:
        await producer.send_and_wait(topic, value, key=key, headers=[("schema", b"RolloutTask")])
    finally:
        await producer.stop()


@pytest.mark.parametrize(
    ("value", "key"), [(b"\xff\x00garbage", b"\xfe"), (b"garbage", None), (None, b"tombstone"), (b"", b"")]
)
async def test_garbage_is_buried_whole_with_place_and_cause(
    kafka: KafkaSettings, value: bytes | None, key: bytes | None
) -> None:
    await send(kafka, kafka.topic("tasks"), value, key)
    record = await one_record(kafka, kafka.topic("tasks"))
    with pytest.raises(InvalidMessageError) as caught:
        decode_record(record, RolloutTask)

    async with DeadLetterOffice(kafka, role="rollout-worker", worker_id="w1") as office:
        place = await office.bury(record, caught.value, attempts=3)

    assert place.topic == kafka.topic("dead-letters")
    buried = await one_record(kafka, kafka.topic("dead-letters"))
    letter = decode_record(buried, DeadLetter)
    assert buried.key == key
    assert (letter.key, letter.value, letter.headers) == (key, value, [("schema", b"RolloutTask")])
    assert (letter.origin_topic, letter.origin_partition, letter.origin_offset) == (
        record.topic,
        record.partition,
        record.offset,
    )
    assert (letter.role, letter.worker_id, letter.attempts) == ("rollout-worker", "w1", 3)
    assert letter.error_type in ("InvalidMessageError", "UnsupportedSchemaError")
    assert letter.error == str(caught.value)
    assert "decode_record" in letter.stack


async def test_the_largest_record_of_a_topic_fits_into_a_letter(kafka: KafkaSettings) -> None:
    topic = kafka.topics["trajectories"]
    value = np.random.default_rng(0).bytes(topic.max_value_bytes)
    await send(kafka, topic.name, value, b"k")
    record = await one_record(kafka, topic.name)

    async with DeadLetterOffice(kafka, role="trainer", worker_id="t1") as office:
        await office.bury(record, ValueError("too much"))

    letter = decode_record(await one_record(kafka, kafka.topic("dead-letters")), DeadLetter)
    assert letter.value == value
