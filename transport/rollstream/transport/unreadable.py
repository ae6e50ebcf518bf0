"""Records that the Kafka client cannot take apart.

The name of a header is not UTF-8, or Kafka's own compression was used, whose libraries the client does not have.
``getmany`` raises for them, again at every call, and then what it had already taken from other partitions in the same
call is lost to the caller. So whoever reads several partitions seeks each back to where it was, and reads past the bad
record partition by partition. `SteadyReader` does all of that for readers without a consumer group.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import UnsupportedCodecError

from rollstream.transport.records import Record, record_place

logger = logging.getLogger(__name__)

UNREADABLE = (UnicodeDecodeError, UnsupportedCodecError)
"""What ``getmany`` raises for such records."""
UNREADABLE_SCHEMA = b"(unreadable)"
STEP_POLL_S = 0.2
MAX_RECORDS = 500


class SteadyReader:
    """Reads on in the partitions assigned to a consumer, past records that the client cannot take apart.

    For one reader at a time. Whoever seeks says so with ``moved``.
    """

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._next: dict[TopicPartition, int] = {}

    async def read(self, *partitions: TopicPartition, timeout_s: float, max_records: int | None = None) -> list[Record]:
        """The next records, in order within each partition; empty if none came within ``timeout_s``.

        Args:
            partitions: read these only; by default all that are assigned.
            timeout_s: longest wait for the first record.
            max_records: at most so many.

        Raises:
            KafkaError: as ``getmany``.
        """
        chosen = partitions or tuple(self._consumer.assignment())
        for partition in chosen:
            if partition not in self._next:
                self._next[partition] = await self._consumer.position(partition)
        try:
            batches = await self._consumer.getmany(
                *partitions, timeout_ms=int(timeout_s * 1000), max_records=max_records
            )
            records = [record for batch in batches.values() for record in cast("list[Record]", batch)]
        except UNREADABLE:
            records = await self._read_past_unreadable(chosen, max_records or MAX_RECORDS)
        for record in records:
            self._next[TopicPartition(record.topic, record.partition)] = record.offset + 1
        return records

    def moved(self) -> None:
        """The consumer was sought elsewhere."""
        self._next.clear()

    async def _read_past_unreadable(self, partitions: Sequence[TopicPartition], max_records: int) -> list[Record]:
        for partition in partitions:
            self._consumer.seek(partition, self._next[partition])
        records: list[Record] = []
        for partition in partitions:
            left = max_records - len(records)
            if left > 0:
                records += await read_past_unreadable(
                    self._consumer, partition, timeout_s=STEP_POLL_S, max_records=left
                )
        return records


async def read_past_unreadable(
    consumer: AIOKafkaConsumer, partition: TopicPartition, *, timeout_s: float, max_records: int = MAX_RECORDS
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
        except UNREADABLE as error:
            offset = await consumer.position(partition)
            consumer.seek(partition, offset + 1)
            stand_in = _stand_in(partition, offset)
            logger.warning("record %s cannot be taken apart: %s", record_place(stand_in), error)
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
