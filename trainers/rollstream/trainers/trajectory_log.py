"""The `trajectories` topic, or that of scored ones, as a log one reader walks through from positions of its own.

Nothing is skipped silently, and over the same log the order of the records is the same (see `reading_order`).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Collection, Mapping
from types import TracebackType
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata

from rollstream.schemas.errors import DataLossError, SettingsError, TransientError
from rollstream.trainers.reading_order import ReadingOrder
from rollstream.transport.clients import admin_client, start_consumer, stop_consumer
from rollstream.transport.records import Record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

logger = logging.getLogger(__name__)

T = TypeVar("T")

OFFSETS_DEADLINE_S = 30.0
COMMIT_DEADLINE_S = 10.0
AWAITED_S = 5.0
"""The others are read on without a partition that has more to come and does not bring it for this long."""
FETCH_RECORDS = 256


class TrajectoryLog:
    """An async context manager. Call ``seek`` once before the first ``fetch``."""

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        topic: str = "trajectories",
        group_id: str | None = None,
        read_ahead_bytes: int | None = None,
        partitions: Collection[int] | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            kafka: where the topic is.
            topic: its short name.
            group_id: whose positions are committed.
            read_ahead_bytes: of all partitions together; None: as much as is useful.
            partitions: those to read; None: all.
        """
        self._wanted_partitions = partitions
        self._read_ahead_bytes = read_ahead_bytes
        self.topic = kafka.topic(topic)
        self._kafka = kafka
        self._group_id = group_id
        self._consumer: AIOKafkaConsumer | None = None
        self._steady_reader: SteadyReader | None = None
        self._partitions: list[TopicPartition] = []
        self._all_partitions: list[TopicPartition] = []
        self._order: ReadingOrder[Record] = ReadingOrder([])
        self._next: dict[int, int] = {}
        """Per partition, the offset to fetch next."""
        self._ends: dict[int, int] = {}
        self._awaited_since: dict[int, float] = {}
        self._lost: DataLossError | None = None

    async def __aenter__(self) -> TrajectoryLog:
        self._all_partitions = await self._find_partitions()
        self._partitions = self._chosen_partitions()
        self._consumer = await start_consumer(self._kafka, group_id=self._group_id, auto_offset_reset="none")
        self._steady_reader = SteadyReader(self._consumer)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await stop_consumer(self._started)

    async def beginning_offsets(self, *, all_partitions: bool = False) -> dict[int, int]:
        """Per partition that is read, or per partition of the topic, the offset of the oldest record still there."""
        partitions = self._all_partitions if all_partitions else self._partitions
        return _by_partition(await self._asked(self._started.beginning_offsets(partitions)))

    async def end_offsets(self) -> dict[int, int]:
        """Per partition, the offset after the newest record."""
        return _by_partition(await self._asked(self._started.end_offsets(self._partitions)))

    async def offsets_at(self, timestamp_s: float) -> dict[int, int]:
        """Per partition, the first offset the broker took at or after a unix time; the end where there is none."""
        ends = await self.end_offsets()
        times = {partition: int(timestamp_s * 1000) for partition in self._partitions}
        found = await self._asked(self._started.offsets_for_times(times))
        return {p.partition: place.offset if place else ends[p.partition] for p, place in found.items()}

    async def seek(
        self, positions: Mapping[int, int], *, read_before: Mapping[int, int] | None = None
    ) -> dict[int, int]:
        """Read from ``positions``, and from the beginning where there is none; returns where reading begins.

        ``read_before``: offsets up to which the log has been read at some time, so that it must reach as far.

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
                raise DataLossError(lost_records(self.topic, partition, offset, beginnings[partition], ends[partition]))
        for partition, offset in (read_before or {}).items():
            if offset > ends[partition]:
                raise DataLossError(made_anew(self.topic, partition, f"it ends at {ends[partition]}, not {offset}"))
        start = {**beginnings, **positions}
        self._started.assign(self._partitions)
        self._next, self._ends = dict(start), ends
        ahead_bytes = None if self._read_ahead_bytes is None else self._read_ahead_bytes // len(start)
        self._order, self._awaited_since, self._lost = ReadingOrder(start, ahead_bytes), {}, None
        self._go_back()
        return start

    async def fetch(self, *, timeout_s: float, max_records: int = FETCH_RECORDS) -> list[Record]:
        """The next records, in `reading_order`; empty if none came within ``timeout_s``.

        Raises:
            DataLossError: retention has overtaken the reader, or the topic was made anew; asking again repeats it.
            TransientError: the broker refused. Nothing is lost: asking again goes on.
        """
        if self._lost is not None:
            raise self._lost
        taken = self._order.take(self._awaited(), max_records)
        if not taken:
            await self._draw(timeout_s)
            taken = self._order.take(self._awaited(), max_records)
        return taken

    async def _draw(self, timeout_s: float) -> None:
        """Fetch what there is, up to a limit per partition."""
        wanted = [partition for partition in self._partitions if partition.partition in self._order.wanted()]
        try:
            records = await self._reader.read(*wanted, timeout_s=timeout_s)
        except OffsetOutOfRangeError as error:
            beginnings, ends = await self.beginning_offsets(), await self.end_offsets()
            partition, offset = next((p.partition, o) for p, o in error.args[0].items())
            self._lost = DataLossError(
                lost_records(self.topic, partition, offset, beginnings[partition], ends[partition])
            )
            raise self._lost from error
        except KafkaError as error:
            self._go_back()
            raise TransientError(f"reading {self.topic!r} failed: {error!r}") from error
        for record in records:
            self._order.put(record)
            self._awaited_since.pop(record.partition, None)
        for partition in wanted:
            self._next[partition.partition] = await self._started.position(partition)

    def _awaited(self) -> set[int]:
        """Partitions of which nothing is here although the broker has more."""
        now_s = time.monotonic()
        awaited: set[int] = set()
        for partition in self._order.empty():
            seen = self._started.highwater(TopicPartition(self.topic, partition)) or 0
            if self._next[partition] >= max(seen, self._ends[partition]):
                self._awaited_since.pop(partition, None)
            elif now_s - self._awaited_since.setdefault(partition, now_s) < AWAITED_S:
                awaited.add(partition)
        return awaited

    def _go_back(self) -> None:
        """A fetch that fails has lost what it had taken from other partitions."""
        for partition in self._partitions:
            self._started.seek(partition, self._next[partition.partition])
        self._reader.moved()

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

    def _chosen_partitions(self) -> list[TopicPartition]:
        if self._wanted_partitions is None:
            return self._all_partitions
        wanted = set(self._wanted_partitions)
        unknown = sorted(wanted - {partition.partition for partition in self._all_partitions})
        if unknown or not wanted:
            raise SettingsError(
                f"{self.topic!r} has {len(self._all_partitions)} partitions, of which {sorted(wanted)} are to be read"
            )
        return [partition for partition in self._all_partitions if partition.partition in wanted]

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


def lost_records(topic: str, partition: int, offset: int, beginning: int, end: int) -> str:
    """What to tell when an offset that is needed is not in the log."""
    return (
        f"offset {offset} of {topic}/{partition} is needed, but the log reaches from {beginning} to {end}: retention "
        "has deleted trajectories that were not trained on, or the topic was made anew; raise retention.ms and "
        "retention.bytes, or start without the checkpoint and accept the loss"
    )


def made_anew(topic: str, partition: int, sign: str) -> str:
    """What to tell when a topic is not the one that was read before."""
    return (
        f"{topic}/{partition} is not the log that was read before: {sign}; the topic was deleted and made anew, or has "
        "lost its end. Start without the checkpoint, and accept the loss of what was not trained on"
    )
