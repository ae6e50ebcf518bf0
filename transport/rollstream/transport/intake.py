"""A consumer-group member whose records finish in any order.

Duty: hand out each record of the partitions it owns once, and commit, per partition, the lowest unfinished offset.

Invariants: nothing unfinished is ever committed past, and no commit goes back behind another's. No record of a new
partition is handed out before whoever must know its past (a `Companion`) is ready. No commit leaves while a rebalance
is under way (the commit gate: without it one late commit makes the group rebalance for ever). A partition that stays
over a rebalance keeps its records; Kafka delivers them again and they are recognised. A partition that leaves is
reported at once.

Crash: the next owner starts at the committed offset, so unfinished records are delivered again (at least once).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportIncompatibleMethodOverride=false
# (aiokafka is annotated in part, and declares the listener's coroutines as plain functions)

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.transport.clients import DENIED, admin_client, denied, start_consumer, stop_consumer
from rollstream.transport.instance_lock import InstanceLock
from rollstream.transport.metrics import RECORDS_GONE
from rollstream.transport.offsets import OffsetTracker
from rollstream.transport.records import Record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import STEP_POLL_S, UNREADABLE, read_past_unreadable

logger = logging.getLogger(__name__)

COMMIT_INTERVAL_S = 1.0
COMMIT_DEADLINE_S = 45.0
"""Over the client's own request time-out: given up before, a commit would end later with nobody to hear its error."""
REVOKED_COMMIT_DEADLINE_S = 10.0
"""A rebalance waits for it."""
PREPARE_RETRY_PAUSE_S = 0.5
POLL_RETRY_PAUSE_S = 0.5
LEAVE_S = 5.0
"""For the last commit, and again for leaving the group; a broker that is away must not keep us."""
TWIN_WINDOW_S = 30.0
"""Regaining the same partitions this often in this time is what two processes with one instance id look like."""
TWIN_ASSIGNMENTS = 6


class Companion(Protocol):
    """Keeps something per partition that must be complete before its records are worked on: a journal."""

    async def prepare(self, partition: int, committed: int | None, metadata: str) -> None:
        """A partition was assigned, with this commit of the group. Return when its records may be handed out.

        Raises:
            TransientError: it will be tried again.
        """
        ...

    def release(self, partition: int) -> None:
        """The partition has left, prepared or not."""
        ...

    def commit_metadata(self, partition: int, offset: int) -> str:
        """What travels with the commit of ``offset``."""
        ...

    def committed(self, partition: int, offset: int) -> None:
        """That commit has succeeded."""
        ...


class GroupIntake:
    """An async context manager; ``run()`` must be running in the owner's TaskGroup while it is used."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: Iterable[str],
        *,
        group_id: str,
        instance_id: str | None = None,
        on_lost: Callable[[frozenset[TopicPartition]], None] | None = None,
        companion: Companion | None = None,
    ) -> None:
        self._kafka = kafka
        self._topics = tuple(topics)
        self._group_id = group_id
        self._instance_id = instance_id
        self._on_lost = on_lost
        self._companion = companion
        self._ready: set[TopicPartition] = set()
        self._some_are_ready = asyncio.Event()
        self._assignment_changed = asyncio.Event()
        self._trackers: dict[TopicPartition, OffsetTracker] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._times_assigned = 0
        self._gate_is_open = False
        self._commit_lock = asyncio.Lock()
        self._assignments: deque[float] = deque(maxlen=TWIN_ASSIGNMENTS)
        self._twin_suspected = asyncio.Event()
        self._stack = AsyncExitStack()
        self._consumer: AIOKafkaConsumer | None = None

    async def __aenter__(self) -> GroupIntake:
        async with AsyncExitStack() as stack:
            if self._instance_id is not None:
                stack.enter_context(InstanceLock(self._group_id, self._instance_id))
            self._consumer = await start_consumer(
                self._kafka,
                *self._topics,
                group_id=self._group_id,
                instance_id=self._instance_id,
                auto_offset_reset="earliest",
                listener=_Listener(self),
            )
            stack.push_async_callback(stop_consumer, self._consumer, timeout_s=LEAVE_S)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        async with self._stack:
            try:
                await self._commit_within(LEAVE_S)
            finally:
                self._gate_is_open = False

    @property
    def partitions(self) -> frozenset[TopicPartition]:
        """What this member owns now."""
        return frozenset(self._trackers)

    async def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        """Records to work on, at most ``max_records``; empty after ``timeout_s``. Ask only while there are free slots.

        Each must be given to ``finished`` in the end. At least once: after a crash or a rebalance elsewhere the same
        record is delivered to the next owner.

        Raises:
            SettingsError: reading, or being in the group, is not permitted.
        """
        if not await self._is_any_ready(timeout_s):
            return []
        try:
            batches = await self._started.getmany(
                *self._ready, timeout_ms=int(timeout_s * 1000), max_records=max_records
            )
        except UNREADABLE:
            return await self._poll_past_unreadable(max_records)
        except DENIED as error:
            raise denied(error, self._kafka) from error
        except KafkaError as error:
            logger.warning("reading %s failed, will be repeated: %r", ", ".join(self._topics), error)
            await asyncio.sleep(POLL_RETRY_PAUSE_S)
            return []
        # No await between the fetch and here: a record can only belong to the present assignment.
        due = [records for partition, records in batches.items() if self._is_due(partition, records)]
        return self._begin(record for records in due for record in records)

    def _is_due(self, partition: TopicPartition, records: Sequence[Record]) -> bool:
        """A fetch may outlive a partition's leaving and coming back: then its records come again when it is ready."""
        if partition not in self._ready:
            self._started.seek(partition, records[0].offset)
        return partition in self._ready

    def finished(self, partition: TopicPartition, offset: int) -> None:
        """The record needs no more work: its effects are acknowledged. Safe to repeat and after a loss."""
        tracker = self._trackers.get(partition)
        if tracker is not None:
            tracker.finish(offset)

    async def run(self) -> None:
        """Commit about once a second, and prepare what is assigned, until cancelled.

        Raises:
            DataLossError: as the companion.
            SettingsError: another process uses the same instance id and takes the partitions away again and again.
        """
        if self._companion is None:
            return await self._commit_again_and_again()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._prepare_partitions(self._companion, group))
            await self._commit_again_and_again()

    def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """The group has settled. For the rebalance listener only; must not await (see ``poll``)."""
        lost = frozenset(self._trackers) - partitions
        if not lost and partitions and partitions == frozenset(self._trackers):
            self._note_unchanged_assignment()
        for tracker in self._trackers.values():
            tracker.rejoined()
        for partition in lost:
            del self._trackers[partition]
            self._committed.pop(partition, None)
            self._ready.discard(partition)
        for partition in partitions - frozenset(self._trackers):
            self._trackers[partition] = OffsetTracker()
            if self._companion is None:
                self._ready.add(partition)
        self._times_assigned += 1
        self._gate_is_open = True
        logger.info("own %d partitions of %s, lost %d", len(partitions), ", ".join(self._topics), len(lost))
        if lost and self._on_lost is not None:
            self._on_lost(lost)
        if self._companion is not None:
            for partition in lost:
                self._companion.release(partition.partition)
        self._assignment_changed.set()

    async def revoked(self) -> None:
        """A rebalance begins. For the rebalance listener only: commits what can be committed, then closes the gate."""
        await self._commit_within(REVOKED_COMMIT_DEADLINE_S)
        self._gate_is_open = False

    async def _is_any_ready(self, timeout_s: float) -> bool:
        if self._companion is None or self._ready:
            return True
        self._some_are_ready.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._some_are_ready.wait()
        return bool(self._ready)

    async def _prepare_partitions(self, companion: Companion, group: asyncio.TaskGroup) -> None:
        """A tracker stands for one ownership: a partition that leaves and comes back has another."""
        preparing: dict[TopicPartition, tuple[OffsetTracker, asyncio.Task[None]]] = {}
        while True:
            self._assignment_changed.clear()
            for partition, (tracker, task) in list(preparing.items()):
                if self._trackers.get(partition) is not tracker:
                    task.cancel()
                    companion.release(partition.partition)
                    del preparing[partition]
            new = {partition: tracker for partition, tracker in self._trackers.items() if partition not in preparing}
            commits = await self._committed_offsets(list(new))
            for partition, tracker in new.items():
                if self._trackers.get(partition) is tracker:
                    preparing[partition] = (
                        tracker,
                        group.create_task(self._prepare(companion, partition, tracker, commits.get(partition))),
                    )
            await self._assignment_changed.wait()

    async def _committed_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        while partitions:
            try:
                async with admin_client(self._kafka) as admin:
                    return await admin.list_consumer_group_offsets(self._group_id, partitions=partitions)
            except TransientError as error:
                logger.warning("the commits of group %s cannot be read yet: %s", self._group_id, error)
            await asyncio.sleep(PREPARE_RETRY_PAUSE_S)
        return {}

    async def _prepare(
        self, companion: Companion, partition: TopicPartition, tracker: OffsetTracker, commit: OffsetAndMetadata | None
    ) -> None:
        offset, metadata = (commit.offset, commit.metadata) if commit is not None and commit.offset >= 0 else (None, "")
        while True:
            try:
                await companion.prepare(partition.partition, offset, metadata)
                break
            except TransientError as error:
                logger.warning("partition %s waits to be prepared: %s", partition, error)
            await asyncio.sleep(PREPARE_RETRY_PAUSE_S)
        if self._trackers.get(partition) is tracker:
            tracker.starts_at = offset
            self._ready.add(partition)
            self._some_are_ready.set()

    async def _commit_again_and_again(self) -> None:
        while True:
            try:
                async with asyncio.timeout(COMMIT_INTERVAL_S):
                    await self._twin_suspected.wait()
            except TimeoutError:
                await self._commit_within(COMMIT_DEADLINE_S)
                continue
            raise SettingsError(
                f"another process seems to use instance_id {self._instance_id!r} in group {self._group_id!r}: the same "
                f"partitions were assigned {TWIN_ASSIGNMENTS} times in {TWIN_WINDOW_S:.0f} s; give each worker its own"
            )

    def _begin(self, records: Iterable[Record]) -> list[Record]:
        begun: list[Record] = []
        for record in records:
            tracker = self._trackers.get(TopicPartition(record.topic, record.partition))
            if tracker is None:
                continue
            if gone := tracker.missing_before(record.offset):
                RECORDS_GONE.labels(record.topic).inc(gone)
                logger.error(
                    "%d records of %s before offset %d were deleted before anybody worked on them: retention.ms or "
                    "retention.bytes of the topic is too small, or there are too few workers",
                    gone,
                    f"{record.topic}/{record.partition}",
                    record.offset,
                )
            if tracker.begin(record.offset):
                begun.append(record)
        return begun

    async def _poll_past_unreadable(self, max_records: int) -> list[Record]:
        """Partition by partition, with a stand-in for the record that the client cannot take apart."""
        consumer, settled = self._started, self._times_assigned
        await self._go_back()
        records: list[Record] = []
        for partition in sorted(self._ready):
            left = max_records - len(records)
            if left > 0:
                records += await read_past_unreadable(consumer, partition, timeout_s=STEP_POLL_S, max_records=left)
        if settled == self._times_assigned:
            return self._begin(records)
        await self._go_back()
        return []

    async def _go_back(self) -> None:
        """Read on after what has been taken on: a failed fetch, or one over a rebalance, has moved the positions."""
        consumer = self._started
        try:
            for partition, tracker in list(self._trackers.items()):
                position = tracker.next_offset
                if position is None:
                    position = await consumer.committed(partition)
                if position is None:
                    await consumer.seek_to_beginning(partition)
                else:
                    consumer.seek(partition, position)
        except IllegalStateError:
            logger.info("a rebalance moved the partitions of %s meanwhile: they are read again", self._group_id)

    def _note_unchanged_assignment(self) -> None:
        now = time.monotonic()
        self._assignments.append(now)
        is_full = len(self._assignments) == TWIN_ASSIGNMENTS
        if self._instance_id and is_full and now - self._assignments[0] < TWIN_WINDOW_S:
            self._twin_suspected.set()

    async def _commit_within(self, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(deadline_s), self._commit_lock:
                if self._gate_is_open:
                    await self._commit()
        except CommitFailedError as error:
            logger.warning("commit refused in group %s, the group is rebalancing: %s", self._group_id, error)
        except (TimeoutError, KafkaError) as error:
            logger.warning("commit in group %s failed, will be repeated: %r", self._group_id, error)

    async def _commit(self) -> None:
        for partition in self._committable():
            # Kafka takes smaller commits, of members that were away and even of strangers while a group is empty.
            self._committed[partition] = await self._started.committed(partition) or 0
        offsets = self._committable()
        if not offsets or not self._gate_is_open:
            return
        companion = self._companion
        await self._started.commit(
            {
                p: OffsetAndMetadata(o, companion.commit_metadata(p.partition, o) if companion else "")
                for p, o in offsets.items()
            }
        )
        for partition, offset in offsets.items():
            if partition in self._trackers:
                self._committed[partition] = offset
                if companion is not None:
                    companion.committed(partition.partition, offset)

    def _committable(self) -> dict[TopicPartition, int]:
        return {
            partition: offset
            for partition, tracker in self._trackers.items()
            if (offset := tracker.committable) is not None and offset > self._committed.get(partition, -1)
        }

    @property
    def _started(self) -> AIOKafkaConsumer:
        assert self._consumer is not None, "use GroupIntake as an async context manager"
        return self._consumer


class _Listener(ConsumerRebalanceListener):
    def __init__(self, intake: GroupIntake) -> None:
        self._intake = intake

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._intake.revoked()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._intake.assigned(frozenset(assigned))
