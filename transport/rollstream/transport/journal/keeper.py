"""The journal of every partition this worker owns: replayed when it is assigned, tailed as long as it is owned.

Duty: know, for each owned partition of `tasks`, everything its journal says, and append to it.

Invariants: a partition is ready only after its journal has been read from the committed floor to the end it had after
the assignment; every record is folded once, in order; nothing is skipped but records that are none of the journal,
which go to the dead letters; after a freeze nothing new begins before what others wrote meanwhile has been read.

Crash: nothing is lost but memory; the next owner reads the same records. Rebalance: a partition that stays keeps its
fold; one that leaves is forgotten at once.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part)

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from rollstream.schemas.errors import DataLossError, InvalidMessageError, TransientError
from rollstream.schemas.journal import JournalRecord
from rollstream.transport.clients import require_topics, start_consumer, stop_consumer
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.journal.currency import Currency
from rollstream.transport.journal.owned_partition import OwnedPartition
from rollstream.transport.journal.partition_fold import PartitionFold, floor_text, read_floor
from rollstream.transport.journal.task_state import PartitionLostError
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record, record_place
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

logger = logging.getLogger(__name__)

T = TypeVar("T")

FETCH_WAIT_S = 0.2
"""A partition that was just assigned waits for the fetch under way."""
OFFSETS_DEADLINE_S = 30.0
RETRY_PAUSE_S = 0.2
RECORDS_PER_TURN = 32
"""Records folded before other tasks of the event loop get their turn."""


class JournalKeeper:
    """An async context manager; ``run()`` must be running in the owner's TaskGroup while it is used.

    Partitions are numbers: that of the journal and that of `tasks` are the same.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        publisher: Publisher,
        dead_letters: DeadLetterOffice,
        *,
        accepts_data_loss: bool = False,
    ) -> None:
        self._kafka = kafka
        self._accepts_data_loss = accepts_data_loss
        self._topic = kafka.topic("journal")
        self._publisher = publisher
        self._dead_letters = dead_letters
        self._owned: dict[int, OwnedPartition] = {}
        self._has_changed = asyncio.Event()
        self._currency = Currency(kafka.session_timeout_s)
        self._stack = AsyncExitStack()
        self._started: AIOKafkaConsumer | None = None

    async def __aenter__(self) -> JournalKeeper:
        await require_topics(self._kafka, self._topic)
        self._started = await start_consumer(self._kafka, auto_offset_reset="none")
        self._stack.push_async_callback(stop_consumer, self._started)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def of(self, partition: int) -> OwnedPartition:
        """The journal of an owned partition. Raises KeyError if it is not owned."""
        return self._owned[partition]

    async def prepare(self, partition: int, committed: int | None, metadata: str) -> None:
        """Return when the fold of a partition that was just assigned is complete.

        Args:
            partition: its number.
            committed: offset that the group has committed; None: none.
            metadata: of that commit.

        Raises:
            DataLossError: retention has deleted records that are still needed, or a topic was made anew.
        """
        place, tasks = TopicPartition(self._topic, partition), TopicPartition(self._kafka.topic("tasks"), partition)
        beginning = await self._offset(self._consumer.beginning_offsets([place]), place)
        end = await self._offset(self._consumer.end_offsets([place]), place)
        floor = read_floor(metadata) if committed is not None else None
        end_of_tasks = await self._offset(self._consumer.end_offsets([tasks]), tasks)
        if committed is not None and committed > end_of_tasks:
            self._lost(
                f"the group has committed offset {committed} of {tasks.topic}/{partition}, which ends at "
                f"{end_of_tasks}: the topic was made anew; reset the offsets of the group"
            )
        if floor is not None and not beginning <= floor <= end:
            self._lost(
                f"{self._topic}/{partition} must be read from offset {floor} on, but reaches from {beginning} to "
                f"{end}: retention has deleted what running tasks have done, or the topic was made anew; raise its "
                "retention.ms"
            )
            floor = None
        await self.replay(partition, beginning if floor is None else floor, end)

    def _lost(self, what: str) -> None:
        loss = DataLossError(
            f"{what}, or accept that the tasks concerned run again: rollout_worker.accepts_data_loss = true"
        )
        if not self._accepts_data_loss:
            raise loss
        logger.error("%s", loss)

    async def replay(self, partition: int, start: int, end: int) -> None:
        """Own a partition from ``start`` on and return when it has been read up to ``end``."""
        self.release(partition)
        owned = self._owned[partition] = OwnedPartition(
            PartitionFold(start), lambda record: self.send(partition, record), self._currency
        )
        self._has_changed.set()
        if end > start:
            logger.info("reading %d records of %s/%d", end - start, self._topic, partition)
            with suppress(PartitionLostError):
                await owned.read_past(end - 1)

    def release(self, partition: int) -> None:
        """The partition has left: its journal is somebody else's."""
        owned = self._owned.pop(partition, None)
        if owned is not None:
            owned.close()
            self._has_changed.set()

    def commit_metadata(self, partition: int, offset: int) -> str:
        """What goes into the commit of ``offset``: where the next owner must begin to read."""
        return floor_text(self._owned[partition].fold.floor(offset))

    def committed(self, partition: int, offset: int) -> None:
        """The commit has succeeded: what lies below is forgotten."""
        owned = self._owned.get(partition)
        if owned is not None:
            owned.fold.forget_below(offset)

    async def send(self, partition: int, record: JournalRecord) -> int:
        """Append without reading back; returns the offset. For what nobody waits for.

        Raises:
            TransientError: not acknowledged in time.
        """
        return (await self._publisher.publish(record, key=record.trajectory_id, partition=partition)).offset

    async def run(self) -> None:
        """Read the tails until cancelled.

        Raises:
            DataLossError: retention has overtaken a reader.
        """
        reader = SteadyReader(self._consumer)
        while True:
            if self._has_changed.is_set():
                self._has_changed.clear()
                self._take_positions(reader)
            if not self._owned:
                await self._has_changed.wait()
                continue
            try:
                records = await reader.read(timeout_s=FETCH_WAIT_S)
            except OffsetOutOfRangeError as error:
                raise DataLossError(
                    f"the journal {self._topic} was cut off while it was read ({error}): retention is shorter than the "
                    "episodes, or the topic was made anew"
                ) from error
            except KafkaError as error:
                logger.warning("reading %s failed, will be repeated: %r", self._topic, error)
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            for number, record in enumerate(records, start=1):
                # After a change what was read may be of a former ownership; the positions of the folds are the truth.
                if self._has_changed.is_set():
                    break
                await self._fold(record)
                if number % RECORDS_PER_TURN == 0:
                    await asyncio.sleep(0)
            await self._stay_current()

    async def _stay_current(self) -> None:
        """After a freeze as long as a session, nothing begins before the journal has been read to its present end."""
        if self._currency.asks_for_ends():
            places = {TopicPartition(self._topic, partition): partition for partition in self._owned}
            try:
                async with asyncio.timeout(OFFSETS_DEADLINE_S):
                    ends = await self._consumer.end_offsets(list(places))
            except (TimeoutError, KafkaError) as error:
                logger.warning("the ends of %s are not known yet: %r", self._topic, error)
                return
            self._currency.must_reach({places[place]: end for place, end in ends.items()})
        self._currency.read_to({partition: owned.fold.position for partition, owned in self._owned.items()})

    def _take_positions(self, reader: SteadyReader) -> None:
        consumer = self._consumer
        places = {TopicPartition(self._topic, partition): owned for partition, owned in self._owned.items()}
        consumer.assign(list(places))
        for place, owned in places.items():
            consumer.seek(place, owned.fold.position)
        reader.moved()

    async def _fold(self, record: Record) -> None:
        owned = self._owned.get(record.partition)
        if owned is None or record.offset < owned.fold.position:
            return
        try:
            owned.fold.apply(record.offset, decode_record(record, JournalRecord))
        except InvalidMessageError as error:
            logger.error("%s is no record of the journal: %s", record_place(record), error)
            await self._dead_letters.bury(record, error)
            owned.fold.skip(record.offset)
        owned.notify()

    async def _offset(self, question: Awaitable[dict[TopicPartition, int]], place: TopicPartition) -> int:
        try:
            async with asyncio.timeout(OFFSETS_DEADLINE_S):
                return (await question)[place]
        except (TimeoutError, KafkaError) as error:
            raise TransientError(f"the broker did not say the offsets of {place}: {error!r}") from error

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        assert self._started is not None, "use JournalKeeper as an async context manager"
        return self._started
