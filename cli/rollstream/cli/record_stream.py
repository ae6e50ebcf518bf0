"""Everything the topics of a run hold and get, for observers beside the pipeline. Reads only, commits nothing."""
# aiokafka is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.messages import Message
from rollstream.schemas.registry import MESSAGES
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

logger = logging.getLogger(__name__)

POLL_S = 0.5
MAX_RECORDS = 1000

See = Callable[[Message, tuple[int, int, int]], None]
"""Receives a message and its place: (broker timestamp in ms, partition, offset)."""


async def read_records(kafka: KafkaSettings, topics: Sequence[str], see: See) -> None:
    """Hand every record of ``topics`` (full names) to ``see``, from the beginning, until cancelled.

    Records within a partition come in order, repeated ones included. What cannot be decoded is logged and passed over:
    sending it to the dead letters is the business of those who act on it.
    """
    consumer = await start_consumer(kafka, *topics, auto_offset_reset="earliest")
    reader = SteadyReader(consumer)
    try:
        while True:
            for record in await reader.read(timeout_s=POLL_S, max_records=MAX_RECORDS):
                try:
                    message = decode_record(record, *MESSAGES)
                except InvalidMessageError as error:
                    logger.warning("%s[%d]@%d: %s", record.topic, record.partition, record.offset, error)
                else:
                    see(message, (record.timestamp, record.partition, record.offset))
    finally:
        await stop_consumer(consumer)
