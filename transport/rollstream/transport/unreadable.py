"""Records that the Kafka client cannot take apart: the name of a header is not UTF-8.

``getmany`` raises ``UnicodeDecodeError`` for them, again at every call, and then what it had already taken from other
partitions in the same call is lost to the caller. So whoever reads several partitions seeks each back to where it was,
and reads past the bad record with the function here, partition by partition.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import logging
from typing import cast

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from rollstream.transport.records import Record, record_place

logger = logging.getLogger(__name__)

UNREADABLE_SCHEMA = b"(unreadable)"


async def read_past_unreadable(
    consumer: AIOKafkaConsumer, partition: TopicPartition, *, timeout_s: float, max_records: int = 500
) -> list[Record]:
    """Read one by one, up to and including the first unreadable record, or as far as ``timeout_s`` of silence.

    In its place stands an empty record whose ``schema`` header no reader knows: it is buried like any other that
    cannot be decoded, and its letter names the place where the bytes still are. Records that share a batch with it and
    come after it cannot be read either.
    """
    records: list[Record] = []
    while len(records) < max_records:
        try:
            batch = await consumer.getmany(partition, timeout_ms=int(timeout_s * 1000), max_records=1)
        except UnicodeDecodeError:
            offset = await consumer.position(partition)
            consumer.seek(partition, offset + 1)
            stand_in = _stand_in(partition, offset)
            logger.warning("record %s has a header whose name is not UTF-8", record_place(stand_in))
            return [*records, stand_in]
        if not batch:
            break
        records += cast("list[Record]", batch[partition])
    return records


def _stand_in(partition: TopicPartition, offset: int) -> Record:
    return ConsumerRecord(
        topic=partition.topic,
        partition=partition.partition,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        key=None,
        value=b"",
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=0,
        headers=[("schema", UNREADABLE_SCHEMA)],
    )
