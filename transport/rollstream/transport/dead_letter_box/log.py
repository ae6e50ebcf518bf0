"""Reading `dead-letters`, as an observer: no group, nothing committed.

A record of the topic that is neither letter nor resolution counts as a letter of its own: nothing here is invisible.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (aiokafka is annotated in part only)

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing

from aiokafka import TopicPartition

from rollstream.schemas.dead_letters import DeadLetter, DeadLetterResolution
from rollstream.schemas.errors import InvalidMessageError, TransientError
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.dead_letter_box.letters import BuriedLetter, DeadLetterBox, LetterId
from rollstream.transport.dead_letters import dead_letter
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

RESOLUTIONS_PARTITION = 0
READER = "reader of dead-letters"
"""Role that letters name which were found to be none."""
POLL_S = 1.0
STALL_S = 60.0
"""Reading that brings nothing for this long before the end has failed."""
MAX_RECORDS = 200

Range = tuple[int, int | None]
"""First offset, and the offset after the last one; None: to the present end."""


async def read_box(kafka: KafkaSettings, wants: Callable[[DeadLetter], bool] = lambda _: True) -> DeadLetterBox:
    """Everything that is in the topic now.

    Raises:
        SettingsError: there is no such topic.
        TransientError: the broker gave nothing for a minute.
    """
    box = DeadLetterBox(wants)
    async with aclosing(_read(kafka, None)) as records:
        async for record in records:
            _sort_in(box, record)
    return box


async def read_resolutions(kafka: KafkaSettings, box: DeadLetterBox, end: int) -> None:
    """Let the box know of the resolutions before offset ``end``. New letters there are left for another time.

    Raises:
        TransientError: the broker gave nothing for a minute.
    """
    if box.resolved_to >= end:
        return
    async with aclosing(_read(kafka, {RESOLUTIONS_PARTITION: (box.resolved_to, end)})) as records:
        async for record in records:
            content = _content(record)
            if isinstance(content, DeadLetterResolution):
                box.resolve(content)
    box.resolved_to = end


async def read_letters(kafka: KafkaSettings, buried: Iterable[BuriedLetter]) -> AsyncGenerator[DeadLetter]:
    """The letters whole, in the order in which they lie in each partition; one that retention has taken is left out.

    Raises:
        TransientError: the broker gave nothing for a minute.
    """
    wanted: defaultdict[int, set[int]] = defaultdict(set)
    for each in buried:
        wanted[each.place[0]].add(each.place[1])
    ranges = {partition: (min(offsets), max(offsets) + 1) for partition, offsets in wanted.items()}
    if not ranges:
        return
    async with aclosing(_read(kafka, ranges)) as records:
        async for record in records:
            content = _content(record) if record.offset in wanted[record.partition] else None
            if isinstance(content, DeadLetter):
                yield content


def _sort_in(box: DeadLetterBox, record: Record) -> None:
    content = _content(record)
    if isinstance(content, DeadLetter):
        box.bury(content, record.partition, record.offset)
    else:
        box.resolve(content)
    if record.partition == RESOLUTIONS_PARTITION:
        box.resolved_to = record.offset + 1


def _content(record: Record) -> DeadLetter | DeadLetterResolution:
    try:
        content = decode_record(record, DeadLetter, DeadLetterResolution)
        if isinstance(content, DeadLetterResolution):
            _check_place(content, record)
        return content
    except InvalidMessageError as error:
        failed_at = max(0.0, record.timestamp / 1000)
        return dead_letter(record, error, role=READER, worker_id="", attempts=1, failed_at=failed_at)


def _check_place(resolution: DeadLetterResolution, record: Record) -> None:
    if record.partition != RESOLUTIONS_PARTITION:
        raise InvalidMessageError(
            f"a resolution in partition {record.partition}: only those in {RESOLUTIONS_PARTITION} have an order"
        )
    for text in resolution.letters:
        LetterId.parse(text)


async def _read(kafka: KafkaSettings, ranges: Mapping[int, Range] | None) -> AsyncGenerator[Record]:
    """Records of the ranges, by partition; None: of all partitions, from the earliest to the present end."""
    topic = kafka.topic(DeadLetter.topic)
    consumer = await start_consumer(kafka, topic, auto_offset_reset="earliest")
    try:
        chosen = ranges if ranges is not None else {p.partition: (0, None) for p in consumer.assignment()}
        partitions = [TopicPartition(topic, partition) for partition in chosen]
        present = await consumer.end_offsets(partitions)
        ends = {
            p: min(present[p], end) if (end := chosen[p.partition][1]) is not None else present[p] for p in partitions
        }
        if ranges is not None:
            earliest = await consumer.beginning_offsets(partitions)
            for partition in partitions:
                consumer.seek(partition, max(chosen[partition.partition][0], earliest[partition]))
        reader = SteadyReader(consumer)
        left = set(partitions)
        silent_s = 0.0
        while left := {p for p in left if await consumer.position(p) < ends[p]}:
            records = await reader.read(*left, timeout_s=POLL_S, max_records=MAX_RECORDS)
            silent_s = 0.0 if records else silent_s + POLL_S
            if silent_s > STALL_S:
                raise TransientError(
                    f"topic {topic!r} gave no record for {STALL_S:.0f} s before its end; is the broker up?"
                )
            for record in records:
                if record.offset < ends[TopicPartition(record.topic, record.partition)]:
                    yield record
    finally:
        await stop_consumer(consumer)
