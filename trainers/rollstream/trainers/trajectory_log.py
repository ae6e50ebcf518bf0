"""The `trajectories` topic as a log one reader walks through from positions of its own. Nothing is skipped silently."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from types import TracebackType
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata

from rollstream.schemas.errors import DataLossError, SettingsError, TransientError
from rollstream.transport.clients import admin_client, start_consumer, stop_consumer
from rollstream.transport.records import Record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

logger = logging.getLogger(__name__)

T = TypeVar("T")

OFFSETS_DEADLINE_S = 30.0
COMMIT_DEADLINE_S = 10.0


class TrajectoryLog:
    """An async context manager. Call ``seek`` once before the first ``fetch``."""

    def __init__(self, kafka: KafkaSettings, *, group_id: str | None = None) -> None:
        self.topic = kafka.topic("trajectories")
        self._kafka = kafka
        self._group_id = group_id
        self._consumer: AIOKafkaConsumer | None = None
        self._steady_reader: SteadyReader | None = None
        self._partitions: list[TopicPartition] = []

    async def __aenter__(self) -> TrajectoryLog:
        self._partitions = await self._find_partitions()
        self._consumer = await start_consumer(self._kafka, group_id=self._group_id, auto_offset_reset="none")
        self._steady_reader = SteadyReader(self._consumer)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await stop_consumer(self._started)

    async def beginning_offsets(self) -> dict[int, int]:
        """Per partition, the offset of the oldest record that is still there."""
        return _by_partition(await self._asked(self._started.beginning_offsets(self._partitions)))

    async def end_offsets(self) -> dict[int, int]:
        """Per partition, the offset after the newest record."""
        return _by_partition(await self._asked(self._started.end_offsets(self._partitions)))

    async def offsets_at(self, timestamp_s: float) -> dict[int, int]:
        """Per partition, the first offset the broker took at or after a unix time; the end where there is none."""
        ends = await self.end_offsets()
        times = {partition: int(timestamp_s * 1000) for partition in self._partitions}
        found = await self._asked(self._started.offsets_for_times(times))
        return {p.partition: place.offset if place else ends[p.partition] for p, place in found.items()}

    async def seek(self, positions: Mapping[int, int]) -> dict[int, int]:
        """Read from ``positions``, and from the beginning where there is none; returns where reading begins.

        Raises:
            DataLossError: retention has deleted records that were still needed, or the topic was made anew.
            SettingsError: a position is of a partition the topic does not have.
        """
        beginnings, ends = await self.beginning_offsets(), await self.end_offsets()
        unknown = sorted(positions.keys() - beginnings.keys())
        if unknown:
            raise SettingsError(f"the checkpoint reads partitions {unknown} that {self.topic!r} does not have")
        for partition, offset in positions.items():
            if not beginnings[partition] <= offset <= ends[partition]:
                raise DataLossError(_lost(self.topic, partition, offset, beginnings[partition], ends[partition]))
        start = {**beginnings, **positions}
        self._started.assign(self._partitions)
        for partition in self._partitions:
            self._started.seek(partition, start[partition.partition])
        self._reader.moved()
        return start

    async def fetch(self, *, timeout_s: float, max_records: int | None = None) -> list[Record]:
        """The next records, in order within each partition; empty if none came within ``timeout_s``.

        Raises:
            DataLossError: retention has overtaken the reader.
            TransientError: the broker refused.
        """
        try:
            return await self._reader.read(timeout_s=timeout_s, max_records=max_records)
        except OffsetOutOfRangeError as error:
            beginnings, ends = await self.beginning_offsets(), await self.end_offsets()
            partition, offset = next((p.partition, o) for p, o in error.args[0].items())
            raise DataLossError(_lost(self.topic, partition, offset, beginnings[partition], ends[partition])) from error
        except KafkaError as error:
            raise TransientError(f"reading {self.topic!r} failed: {error!r}") from error

    async def commit(self, positions: Mapping[int, int]) -> None:
        """Commit positions for those who watch the lag of the consumer group; nobody reads from them."""
        offsets = {TopicPartition(self.topic, p): OffsetAndMetadata(offset, "") for p, offset in positions.items()}
        if not offsets:
            return
        try:
            async with asyncio.timeout(COMMIT_DEADLINE_S):
                await self._started.commit(offsets)
        except (TimeoutError, KafkaError) as error:
            logger.warning("positions in %s were not committed, the lag shown is too great: %r", self.topic, error)

    async def _asked(self, question: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(OFFSETS_DEADLINE_S):
                return await question
        except (TimeoutError, KafkaError) as error:
            raise TransientError(f"the broker did not say the offsets of {self.topic!r}: {error!r}") from error

    async def _find_partitions(self) -> list[TopicPartition]:
        async with admin_client(self._kafka) as admin, asyncio.timeout(OFFSETS_DEADLINE_S):
            [description] = await admin.describe_topics([self.topic])
        if description["error_code"] != 0:
            raise SettingsError(f"topic {self.topic!r} does not exist: run 'rollstream topics apply'")
        return sorted(TopicPartition(self.topic, p["partition"]) for p in description["partitions"])

    @property
    def _started(self) -> AIOKafkaConsumer:
        assert self._consumer is not None, "use TrajectoryLog as an async context manager"
        return self._consumer

    @property
    def _reader(self) -> SteadyReader:
        assert self._steady_reader is not None, "use TrajectoryLog as an async context manager"
        return self._steady_reader


def _by_partition(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {partition.partition: offset for partition, offset in offsets.items()}


def _lost(topic: str, partition: int, offset: int, beginning: int, end: int) -> str:
    return (
        f"offset {offset} of {topic}/{partition} is needed, but the log reaches from {beginning} to {end}: retention "
        "has deleted trajectories that were not trained on, or the topic was made anew; raise retention.ms and "
        "retention.bytes, or start without the checkpoint and accept the loss"
    )
