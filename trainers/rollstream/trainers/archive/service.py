"""The archiver: `trajectories` in, files out.

Duty: every trajectory of the topic in exactly one part, the first record with its id.

Invariants: how to go on is read from the newest part of a partition and nowhere else; offsets are committed for those
who watch the lag. A part is created whole or not at all, under a name that says where it begins, and never changed. So
the parts of a partition are one chain, whoever writes them: of two archivers with the same name for their next part one
is first, and the other goes on behind what is there.

Crash: what was read and not written is read again. Several archivers, also frozen ones that wake up: as above, at the
price of work done twice. Drain: what was read is written. Storage or broker away: tried again for a while, then an
error; start again, nothing is lost as long as the topic keeps its records.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Literal

from prometheus_client import Counter

from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.errors import DataLossError, InvalidMessageError, SettingsError, TransientError, single_errors
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.archive import metrics
from rollstream.trainers.archive.part_encoding import encode_part
from rollstream.trainers.archive.part_storage import PartStorage
from rollstream.trainers.archive.partition_tail import PartitionTail, PartLimits
from rollstream.trainers.archive.parts import ArchiveManifest, PartHeader
from rollstream.trainers.archive.settings import MIB, ArchiveSettings
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.heartbeat import Heartbeat
from rollstream.transport.metrics import served_metrics
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record, record_place
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_watch import watched_topics

logger = logging.getLogger(__name__)

GROUP = "archivers"
FETCH_WAIT_S = 0.5
FETCH_RECORDS = 256
READ_AHEAD_SHARE = 0.25
"""Of the memory, for records fetched and not taken in."""
AWAY_S = 300.0
"""A broker that refuses for so long is an error."""
AWAY_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class ArchiveSummary:
    """What one archiver has written, and how often another one was first."""

    trajectories: int
    duplicates: int
    undecodable: int
    parts: int
    yielded: int


async def run_archiver(settings: ArchiveSettings, kafka: KafkaSettings, stop: asyncio.Event) -> ArchiveSummary:
    """Archive until ``stop`` is set, and write what was read.

    Raises:
        SettingsError: target, topic or partitions are not as they must be.
        DataLossError: records were deleted before they were archived, or the topic was made anew.
        TransientError: the broker or the storage failed for minutes.
        InvalidMessageError: the newest part of a partition is damaged.
    """
    try:
        async with AsyncExitStack() as stack:
            if settings.metrics_port is not None:
                stack.enter_context(served_metrics(settings.metrics_port))
            storage = await asyncio.to_thread(PartStorage, settings.target, settings.file_format)
            log = TrajectoryLog(
                kafka,
                topic=settings.topic,
                group_id=kafka.group(GROUP),
                read_ahead_bytes=int(settings.memory_mib * MIB * READ_AHEAD_SHARE),
                partitions=settings.partitions,
            )
            await stack.enter_async_context(log)
            publisher = await stack.enter_async_context(Publisher(kafka, profile="durable"))
            await stack.enter_async_context(watched_topics(kafka, [log.topic]))
            return await Archiver(settings, storage, log).run(Heartbeat(publisher), stop)
    except ExceptionGroup as failures:
        raise next(iter(single_errors(failures))) from failures


class Archiver:
    """One running archiver."""

    def __init__(self, settings: ArchiveSettings, storage: PartStorage, log: TrajectoryLog) -> None:
        self._settings = settings
        self._storage = storage
        self._log = log
        self._limits = PartLimits(settings.part_rows, settings.part_mib * MIB, settings.part_minutes * 60)
        self._starts: dict[int, int] = {}
        self._tails: dict[int, PartitionTail] = {}
        self._counts: collections.Counter[str] = collections.Counter()
        self._state: Literal["running", "draining", "stopped"] = "running"

    async def run(self, heartbeat: Heartbeat, stop: asyncio.Event) -> ArchiveSummary:
        """Read and write until stopped."""
        await heartbeat.say(self._status())
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(heartbeat.beat(self._status))
            try:
                await self._archive(stop)
            finally:
                beating.cancel()
        self._state = "stopped"
        await heartbeat.say(self._status())
        return self.summary()

    def summary(self) -> ArchiveSummary:
        """So far."""
        names = ("archived", "duplicate", "undecodable", "written", "yielded")
        return ArchiveSummary(*(self._counts[name] for name in names))

    async def _archive(self, stop: asyncio.Event) -> None:
        await self._begin()
        while not stop.is_set():
            try:
                records = await self._fetch(stop)
            except DataLossError as error:
                await self._write_all()
                raise self._lost(error) from error
            taken = await asyncio.to_thread(_decoded, records)
            now_s = time.monotonic()
            for record, trajectory in zip(records, taken, strict=True):
                self._tails[record.partition].add(trajectory, record.offset, now_s)
            await self._write_due(time.monotonic())
        self._state = "draining"
        await self._write_all()

    async def _fetch(self, stop: asyncio.Event) -> list[Record]:
        """Nothing is lost when the broker refuses."""
        away_since_s: float | None = None
        while not stop.is_set():
            try:
                return await self._log.fetch(timeout_s=FETCH_WAIT_S, max_records=FETCH_RECORDS)
            except TransientError as error:
                now_s = time.monotonic()
                away_since_s = now_s if away_since_s is None else away_since_s
                if now_s - away_since_s > AWAY_S:
                    raise
                logger.warning("the archive waits for the broker: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(AWAY_PAUSE_S):
                    await stop.wait()
        return []

    async def _begin(self) -> None:
        beginnings = await self._log.beginning_offsets()
        wanted = ArchiveManifest(
            topic=self._log.topic,
            file_format=self._settings.file_format,
            starts=await self._log.beginning_offsets(all_partitions=True),
        )
        manifest = await asyncio.to_thread(self._storage.open, wanted)
        self._starts = {partition: manifest.starts.get(partition, 0) for partition in beginnings}
        for partition in beginnings:
            await self._look_up(partition)
        if self._settings.accepts_loss:
            await self._write_gaps(beginnings)
        await self._seek()

    async def _look_up(self, partition: int) -> None:
        """What the files say of a partition; what was held of it is forgotten."""
        newest = await asyncio.to_thread(self._storage.newest, partition)
        if newest is None:
            self._tails[partition] = PartitionTail(self._log.topic, partition, self._starts[partition])
            return
        if (newest.topic, newest.partition) != (self._log.topic, partition):
            raise SettingsError(
                f"{self._settings.target!r} holds a part of {newest.topic}/{newest.partition} where parts of "
                f"{self._log.topic}/{partition} belong: files were moved; restore them"
            )
        self._tails[partition] = PartitionTail.behind(newest)

    async def _seek(self) -> None:
        try:
            await self._log.seek({partition: tail.next_offset for partition, tail in self._tails.items()})
        except DataLossError as error:
            raise self._lost(error) from error

    def _lost(self, error: DataLossError) -> DataLossError:
        return DataLossError(
            f"the archive {self._settings.target!r} lacks records that are gone: {error}. Go on with "
            "'rollstream archive run --accept-loss', which notes the gap in the archive"
        )

    async def _write_gaps(self, beginnings: dict[int, int]) -> None:
        for partition, beginning in beginnings.items():
            while self._tails[partition].first_offset < beginning:
                gap = self._tails[partition].lost_until(beginning)
                logger.warning(
                    "records %d to %d of %s/%d were deleted before they were archived",
                    *(gap.first_offset, beginning - 1, self._log.topic, partition),
                )
                await self._put(gap, self._tails[partition])
                await self._look_up(partition)

    async def _write_due(self, now_s: float) -> None:
        for tail in [tail for tail in self._tails.values() if tail.is_due(self._limits, now_s)]:
            await self._write(tail)
        while sum(tail.size_bytes for tail in self._tails.values()) > self._settings.memory_mib * MIB:
            await self._write(max(self._tails.values(), key=lambda tail: tail.size_bytes))
        metrics.HELD.set(self._held)

    async def _write_all(self) -> None:
        for tail in list(self._tails.values()):
            if tail.has_news:
                await self._write(tail, is_last=True)

    async def _write(self, tail: PartitionTail, *, is_last: bool = False) -> None:
        header = await asyncio.to_thread(tail.header)
        if await self._put(header, tail):
            tail.written()
            await self._log.commit({tail.partition: tail.first_offset})
            return
        await self._look_up(tail.partition)
        if not is_last:
            await self._seek()

    async def _put(self, header: PartHeader, tail: PartitionTail) -> bool:
        body = await asyncio.to_thread(encode_part, header, tail.held, self._settings.file_format)
        if not await asyncio.to_thread(self._storage.put, header, body):
            logger.info(
                "the part of %s/%d at %d is there already: another archiver's, or this one's before its answer was "
                "lost; going on behind it",
                *(self._log.topic, header.partition, header.first_offset),
            )
            self._count(metrics.PARTS, "yielded", 1)
            return False
        self._count(metrics.PARTS, "written", 1)
        self._count(metrics.RECORDS, "archived", header.trajectories)
        self._count(metrics.RECORDS, "duplicate", header.duplicates)
        self._count(metrics.RECORDS, "undecodable", header.undecodable)
        metrics.PART_BYTES.inc(len(body))
        logger.info(
            "%s/%d: [%d, %d) archived, %d trajectories in %d bytes",
            *(self._log.topic, header.partition, header.first_offset, header.end_offset),
            *(header.trajectories, len(body)),
        )
        return True

    def _count(self, metric: Counter, outcome: str, number: int) -> None:
        metric.labels(outcome).inc(number)
        self._counts[outcome] += number

    @property
    def _held(self) -> int:
        return sum(len(tail.held) for tail in self._tails.values())

    def _status(self) -> WorkerStatus:
        return WorkerStatus(
            worker_id=self._settings.worker_id,
            role="archiver",
            state=self._state,
            running=self._held,
            finished=self._counts["archived"],
            updated_at=time.time(),
            stats={name: float(count) for name, count in self._counts.items()},
        )


def _decoded(records: Sequence[Record]) -> list[Trajectory | None]:
    decoded: list[Trajectory | None] = []
    for record in records:
        try:
            decoded.append(decode_record(record, Trajectory))
        except InvalidMessageError as error:
            logger.warning("%s is not archived: %s", record_place(record), error)
            decoded.append(None)
    return decoded
