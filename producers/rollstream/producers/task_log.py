"""Which tasks of a run the `tasks` topic already holds, and whether it is the topic that they were sent to."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from rollstream.schemas.codec import read_body
from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.errors import InvalidMessageError, SettingsError, TransientError
from rollstream.schemas.ids import group_id, group_partition
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.records import record_headers
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

logger = logging.getLogger(__name__)

POLL_S = 1.0
STALL_S = 60.0
"""Reading that brings nothing for this long has failed."""
_BATCH_RECORDS = 2000


class _TaskHead(msgspec.Struct):
    """The fields of a task that are needed here."""

    run_id: str
    trajectory_id: str
    group_index: int
    replacement: int = 0


@dataclass(frozen=True)
class TaskLog:
    """The state of the topic when it was read.

    Attributes:
        end_offsets: per partition, where reading ended.
        task_ids: ids of the tasks of the run, those of settled groups left out: there may be millions.
        records_read: of all runs.
        begin_offsets: per partition, where the log begins.
        settled: per partition, tasks of settled groups.
        replacement_ids: ids of all replacements of the run; they are in no other count.
    """

    end_offsets: list[int]
    task_ids: set[str] = field(default_factory=set[str])
    records_read: int = 0
    begin_offsets: list[int] = field(default_factory=list[int])
    settled: list[int] = field(default_factory=list[int])
    replacement_ids: set[str] = field(default_factory=set[str])

    @property
    def partitions(self) -> int:
        """Partitions of the topic."""
        return len(self.end_offsets)

    @property
    def tasks_found(self) -> int:
        """Tasks of the run in the topic, replacements left out."""
        return len(self.task_ids) + sum(self.settled)

    def has(self, trajectory_id: str) -> bool:
        """Whether the task is in the topic."""
        return trajectory_id in self.task_ids or trajectory_id in self.replacement_ids


def check_log(run_id: str, recorded: ProducerProgress | None, log: TaskLog, *, topic: str) -> None:
    """Refuse a log that does not fit what the run's last `ProducerProgress` says of it.

    Raises:
        SettingsError: tasks without a record of how they were made, or a topic that is not the one they were sent to.
    """
    if recorded is None:
        if log.tasks_found:
            raise SettingsError(
                f"{log.tasks_found} tasks of run {run_id!r} are in {topic!r}, but nothing says under which options "
                "they were made (was the control topic emptied?); choose another --run"
            )
        return
    grown_by = sum(log.end_offsets) - sum(recorded.start_offsets)
    if recorded.start_offsets and grown_by < recorded.groups_emitted * recorded.group_size:
        raise SettingsError(
            f"run {run_id!r} has emitted {recorded.groups_emitted} groups of {recorded.group_size}, but {topic!r} has "
            f"grown by {grown_by} records only (was it made anew?); choose another --run"
        )
    if len(recorded.start_offsets) == len(log.begin_offsets):
        _check_settled(run_id, recorded, log, topic)


def _check_settled(run_id: str, recorded: ProducerProgress, log: TaskLog, topic: str) -> None:
    """Every task that was sent is there, unless retention has deleted the beginning of its partition."""
    sent = [0] * log.partitions
    for index in range(recorded.groups_emitted):
        sent[group_partition(group_id(run_id, index), log.partitions)] += recorded.group_size
    for partition, (begin, start) in enumerate(zip(log.begin_offsets, recorded.start_offsets, strict=True)):
        if begin <= start and log.settled[partition] < sent[partition]:
            raise SettingsError(
                f"run {run_id!r} has sent {sent[partition]} tasks to {topic}/{partition}, but it holds "
                f"{log.settled[partition]} of them and begins at {begin} (was it made anew?); choose another --run"
            )


async def read_task_log(
    kafka: KafkaSettings, run_id: str, start_offsets: Sequence[int] = (), *, settled_groups: int = 0
) -> TaskLog:
    """Read `tasks` from ``start_offsets`` (one per partition; else the beginning) to the end as of now.

    Records that are no tasks are passed over: rollout workers bury them.

    Args:
        kafka: where the topic is.
        run_id: the run.
        start_offsets: no task of the run lies below them.
        settled_groups: groups below this index are known to be sent; their tasks are only counted.

    Raises:
        TransientError: the broker gave nothing for a minute.
    """
    topic = kafka.topic("tasks")
    consumer = await start_consumer(kafka, topic, auto_offset_reset="earliest")
    try:
        partitions = sorted(consumer.assignment())
        ends = await consumer.end_offsets(partitions)
        beginnings = await consumer.beginning_offsets(partitions)
        if len(start_offsets) == len(partitions):
            for partition, offset in zip(partitions, start_offsets, strict=True):
                consumer.seek(partition, min(offset, ends[partition]))
        reader = SteadyReader(consumer)
        task_ids: set[str] = set()
        replacement_ids: set[str] = set()
        settled = [0] * len(partitions)
        read = 0
        decoder = msgspec.msgpack.Decoder(_TaskHead)
        left = {p for p in partitions if ends[p] > 0}
        silent_s = 0.0
        while left := {p for p in left if await consumer.position(p) < ends[p]}:
            records = await reader.read(*left, timeout_s=POLL_S, max_records=_BATCH_RECORDS)
            silent_s = 0.0 if records else silent_s + POLL_S
            if silent_s > STALL_S:
                raise TransientError(
                    f"topic {topic!r} gave no record for {STALL_S:.0f} s before its end; is the broker up?"
                )
            read += len(records)
            for record in records:
                head = _head(decoder, record.value, record_headers(record))
                if head is None or head.run_id != run_id:
                    continue
                if head.replacement:
                    replacement_ids.add(head.trajectory_id)
                elif head.group_index < settled_groups:
                    settled[record.partition] += 1
                else:
                    task_ids.add(head.trajectory_id)
            await asyncio.sleep(0)
        return TaskLog(
            [ends[p] for p in partitions], task_ids, read, [beginnings[p] for p in partitions], settled, replacement_ids
        )
    finally:
        await stop_consumer(consumer)


def _head(
    decoder: msgspec.msgpack.Decoder[_TaskHead], value: bytes | None, headers: Sequence[tuple[str, bytes]]
) -> _TaskHead | None:
    try:
        return decoder.decode(read_body(value, headers, RolloutTask))
    except (InvalidMessageError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
