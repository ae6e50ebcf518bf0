"""Burying on a real broker."""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from aiokafka import ConsumerRecord
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError, SettingsError, TransientError
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import admin_client, start_consumer, start_producer
from rollstream.transport.dead_letters import STORY_BYTES, DeadLetterOffice
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics

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


def large_record(kafka: KafkaSettings, value: bytes) -> Record:
    """As a cluster with other limits would hand it out."""
    return ConsumerRecord(
        topic=kafka.topic("tasks"), partition=0, offset=3, timestamp=0, timestamp_type=0, key=b"k", value=value,
        checksum=None, serialized_key_size=1, serialized_value_size=len(value), headers=[("schema", b"RolloutTask")],
    )  # fmt: skip


async def test_of_a_record_that_no_letter_can_hold_as_much_is_kept_as_fits(kafka: KafkaSettings) -> None:
    value = np.random.default_rng(0).bytes(kafka.topics["dead-letters"].max_value_bytes + 1_000_000)

    async with DeadLetterOffice(kafka, role="trainer", worker_id="t1") as office:
        await office.bury(large_record(kafka, value), ValueError("too much"))

    letter = decode_record(await one_record(kafka, kafka.topic("dead-letters")), DeadLetter)
    assert letter.value is not None
    assert value.startswith(letter.value)
    assert letter.bytes_missing == len(value) - len(letter.value)
    assert len(letter.value) > kafka.topics["dead-letters"].max_value_bytes - 2 * STORY_BYTES
    assert (letter.headers, letter.error) == ([("schema", b"RolloutTask")], "too much")


async def test_a_large_record_that_can_be_compressed_is_kept_whole(kafka: KafkaSettings) -> None:
    value = bytes(kafka.topics["dead-letters"].max_value_bytes + 1_000_000)

    async with DeadLetterOffice(kafka, role="trainer", worker_id="t1") as office:
        await office.bury(large_record(kafka, value), ValueError("too much"))

    letter = decode_record(await one_record(kafka, kafka.topic("dead-letters")), DeadLetter)
    assert (letter.value, letter.bytes_missing) == (value, 0)


async def test_a_topic_with_a_smaller_limit_than_declared_gets_a_smaller_letter(kafka: KafkaSettings) -> None:
    resource = ConfigResource(ConfigResourceType.TOPIC, kafka.topic("dead-letters"), {"max.message.bytes": "1048588"})
    async with admin_client(kafka) as admin:
        await admin.alter_configs([resource])
    value = np.random.default_rng(0).bytes(5_000_000)

    async with DeadLetterOffice(kafka, role="trainer", worker_id="t1") as office:
        await office.bury(large_record(kafka, value), ValueError("too much"))

    letter = decode_record(await one_record(kafka, kafka.topic("dead-letters")), DeadLetter)
    assert letter.value
    assert value.startswith(letter.value)
    assert letter.bytes_missing == len(value) - len(letter.value)


async def test_without_a_topic_for_letters_nobody_starts(broker: str) -> None:
    nowhere = KafkaSettings(bootstrap=broker, prefix="nobody-made-this.")
    with pytest.raises(SettingsError, match=r"nobody-made-this\.dead-letters"):
        async with DeadLetterOffice(nowhere, role="trainer", worker_id="t1"):
            pass


class Heard(logging.Handler):
    """Counts what is logged, and says when it is enough."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self._left = enough
        self.is_enough = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self._left -= "still waiting for the broker" in record.getMessage()
        if self._left <= 0:
            self.is_enough.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler, logger = Heard(enough=3), logging.getLogger("rollstream")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.mark.timeout(120)
async def test_a_letter_waits_for_a_broker_that_is_away_however_long(tmp_path: Path, heard: Heard) -> None:
    with LocalBroker(BrokerSettings(data_dir=tmp_path / "broker", source="jars")) as broker:
        kafka = KafkaSettings(bootstrap=broker.bootstrap)
        await apply_topics(kafka)
        async with DeadLetterOffice(kafka, role="trainer", worker_id="t1", try_s=1.0) as office:
            await asyncio.to_thread(broker.kill9)
            with pytest.raises(TransientError):
                await office.bury(large_record(kafka, b"x"), ValueError("x"), deadline_s=0.5)
            async with asyncio.TaskGroup() as group, asyncio.timeout(60):
                burying = group.create_task(office.bury(large_record(kafka, b"x"), ValueError("x")))
                await heard.is_enough.wait()
                assert not burying.done()
                await asyncio.to_thread(broker.start)
        assert burying.result().topic == kafka.topic("dead-letters")
        letter = decode_record(await one_record(kafka, kafka.topic("dead-letters")), DeadLetter)
        assert letter.value == b"x"
