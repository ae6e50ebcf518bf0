"""Looks now and then whether the broker is about to delete trajectories that the trainer still needs.

Duty: an alarm before (log, metric, ``left``), the reason to stop after (``lost``): the topic is gone or made anew.
A broker that does not answer is no finding; it is asked again.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from rollstream.schemas.errors import DataLossError, RollstreamError
from rollstream.trainers import metrics
from rollstream.trainers.retention import NeededSpan, Retention, explain_alarm, is_news, retention_left
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.trajectory_log import made_anew
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.records import Record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import list_topics

logger = logging.getLogger(__name__)

LOOK_DEADLINE_S = 10.0
LEAVE_S = 5.0
"""For the look under way: cancelled in the middle, a client that is being started leaves its connection open."""
AGE_STEPS = 8
"""The age of a record is found to within 2**-8 of the retention; each step asks once for all partitions."""
MISSING_LOOKS = 3
MISSING_PAUSE_S = 1.0
"""A broker that has just come back may not know its topics for a moment."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a reader stands.

    Attributes:
        needed: per partition, the lowest offset that it, or its newest checkpoint, would read again.
        read_to: per partition, the offset after the last record it has taken.
        bytes_each: mean size of a record; None: none was read yet.
    """

    needed: Mapping[int, int]
    read_to: Mapping[int, int]
    bytes_each: float | None


class RecordSizes:
    """Mean size of the records read."""

    def __init__(self) -> None:
        self._records = 0
        self._size_bytes = 0

    def count(self, record: Record) -> None:
        """One more was read."""
        self._records += 1
        self._size_bytes += len(record.value or b"") + len(record.key or b"")

    @property
    def bytes_each(self) -> float | None:
        """None before the first."""
        return self._size_bytes / self._records if self._records else None


class RetentionWatch:
    """An async context manager; from ``begin`` on it looks every ``retention_check_s``, until left or all is lost."""

    def __init__(
        self, kafka: KafkaSettings, topic: str, settings: TrainerSettings, standing: Callable[[], Standing]
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._settings = settings
        self._standing = standing
        self._warned_at: float | None = None
        self._tasks = asyncio.TaskGroup()
        self._watching: asyncio.Task[None] | None = None
        self._is_left = asyncio.Event()
        self.left: float | None = None
        """Share of the retention left to the oldest record needed; None: nothing is at stake, or not known yet."""
        self.lost: DataLossError | None = None
        """Why reading on would be wrong."""

    async def __aenter__(self) -> RetentionWatch:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._is_left.set()
        if self._watching is not None:
            await asyncio.wait([self._watching], timeout=LEAVE_S)
            self._watching.cancel()
        # Left without the owner's exception: a TaskGroup would wrap it into a group.
        await self._tasks.__aexit__(None, None, None)

    def begin(self) -> None:
        """Reading has begun: there is something to watch."""
        self._watching = self._tasks.create_task(self._run())

    async def _run(self) -> None:
        while self.lost is None and not self._is_left.is_set():
            try:
                async with asyncio.timeout(LOOK_DEADLINE_S):
                    await self._look()
            except (RollstreamError, KafkaError, OSError) as error:  # a TimeoutError is an OSError
                logger.debug("the retention of %s cannot be looked at now: %r", self._topic, error)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.retention_check_s):
                    await self._is_left.wait()

    async def _look(self) -> None:
        configs = await self._configs()
        if self.lost is not None:
            logger.error("%s", self.lost)
            return
        retention = Retention.of_config(configs[self._topic])
        consumer = await start_consumer(self._kafka)
        try:
            spans = await self._spans(consumer, retention)
        finally:
            await stop_consumer(consumer)
        self._judge(spans, retention)

    async def _configs(self) -> Mapping[str, Mapping[str, str]]:
        """Of the topics that a trainer cannot do without."""
        control = self._kafka.topic("control")
        configs: dict[str, Mapping[str, str]] = {}
        for _ in range(MISSING_LOOKS):
            configs = {state.name: state.config for state in await list_topics(self._kafka)}
            if {self._topic, control} <= configs.keys():
                return configs
            await asyncio.sleep(MISSING_PAUSE_S)
        if self._topic not in configs:
            self.lost = DataLossError(
                f"topic {self._topic!r} was deleted while it was read: what was not trained on is gone; make it again "
                "with 'rollstream topics apply' and start without the checkpoint"
            )
        else:
            self.lost = DataLossError(
                f"topic {control!r} was deleted: producers and workers would hear nothing any more; make it again with "
                "'rollstream topics apply' and start all roles again, the trainer from its checkpoint"
            )
        return configs

    async def _spans(self, consumer: AIOKafkaConsumer, retention: Retention) -> list[NeededSpan]:
        standing = self._standing()
        partitions = {p: TopicPartition(self._topic, p) for p in standing.needed}
        beginnings = await consumer.beginning_offsets(list(partitions.values()))
        ends = await consumer.end_offsets(list(partitions.values()))
        for partition, read_to in standing.read_to.items():
            if partition in partitions and ends[partitions[partition]] < read_to:
                sign = f"it ends at {ends[partitions[partition]]}, and {read_to} was read"
                self.lost = DataLossError(made_anew(self._topic, partition, sign))
                logger.error("%s", self.lost)
        ages = await self._ages(consumer, standing.needed, retention.keep_s)
        return [
            NeededSpan(
                partition=partition,
                offset=offset,
                beginning=beginnings[partitions[partition]],
                end=ends[partitions[partition]],
                age_s=ages.get(partition),
                size_bytes=None
                if standing.bytes_each is None
                else standing.bytes_each * max(0, ends[partitions[partition]] - offset),
            )
            for partition, offset in standing.needed.items()
        ]

    async def _ages(
        self, consumer: AIOKafkaConsumer, needed: Mapping[int, int], keep_s: float | None
    ) -> dict[int, float]:
        """Age of the record at each offset, by bisection: the broker says which record is the first of a moment."""
        if keep_s is None:
            return {}
        now_s = time.time()
        younger, older = dict.fromkeys(needed, 0.0), dict.fromkeys(needed, keep_s)
        for _ in range(AGE_STEPS):
            middle = {partition: (younger[partition] + older[partition]) / 2 for partition in needed}
            first = await consumer.offsets_for_times(
                {TopicPartition(self._topic, p): int((now_s - age_s) * 1000) for p, age_s in middle.items()}
            )
            for place, found in first.items():
                is_younger = found is not None and needed[place.partition] >= found.offset
                (older if is_younger else younger)[place.partition] = middle[place.partition]
        return older

    def _judge(self, spans: list[NeededSpan], retention: Retention) -> None:
        lefts = [(left, span) for span in spans if (left := retention_left(span, retention)) is not None]
        self.left, worst = min(lefts, key=lambda pair: pair[0], default=(None, None))
        metrics.RETENTION_LEFT.labels(self._settings.trainer_id).set(1.0 if self.left is None else self.left)
        if self.left is None or worst is None or self.left >= self._settings.retention_alarm_share:
            self._warned_at = None
        elif is_news(self.left, self._warned_at, self._settings.retention_alarm_share):
            self._warned_at = self.left
            logger.warning("%s", explain_alarm(self._topic, worst, self.left, retention))
