"""The consumer of the simulation: what ``AIOKafkaConsumer`` shows to production code, alone or as a group member."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndTimestamp
from simulator.cluster import Cluster, Record, places
from simulator.connections import Connections
from simulator.membership import Membership
from simulator.processes import current_process

MAX_RECORDS = 500


class SimulatedConsumer:
    """One client. Every answer of the cluster takes its time; records arrive in the order of their partition."""

    cluster: Cluster

    def __init__(self, **options: Any) -> None:
        self._reset: str = options["auto_offset_reset"]
        self._process = current_process()
        self._assigned: list[TopicPartition] = []
        self._positions: dict[TopicPartition, int] = {}
        self._ends_seen: dict[TopicPartition, int] = {}
        self._topics: tuple[str, ...] = ()
        self._may_fetch = asyncio.Event()
        self._may_fetch.set()
        self._is_stopped = False
        self._client = Connections()
        self.cluster.readers.setdefault(self._process, []).append(self)
        self._membership: Membership | None = None
        if options["group_id"] is not None:
            self._membership = Membership(self, **options)

    # ---- life

    def subscribe(self, topics: Sequence[str] = (), listener: ConsumerRebalanceListener | None = None) -> None:
        """Partitions come from the group; without one all of them are the consumer's."""
        self._topics = tuple(topics)
        if self._membership is not None:
            self._membership.listener = listener

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions chosen by hand."""
        self.take(partitions)

    async def start(self) -> None:
        """Connect; as a group member: join and wait for partitions."""
        await self.travel()
        if self._membership is not None and self._topics:
            await self._membership.start(self._topics)
        else:
            self.take(places(self._topics, self.cluster))

    async def stop(self) -> None:
        """Leave the group, unless as a static member, and read nothing any more."""
        self._is_stopped = True
        if self._membership is not None:
            await self._membership.stop()

    def take(self, partitions: Iterable[TopicPartition]) -> None:
        """A new assignment: positions of partitions are looked up when they are needed."""
        self._assigned = list(partitions)
        self._positions = {}

    def hold_fetches(self, *, is_held: bool) -> None:
        """During a rebalance nothing is handed out."""
        if is_held:
            self._may_fetch.clear()
        else:
            self._may_fetch.set()

    async def travel(self) -> None:
        """There and back again."""
        await asyncio.sleep(self.cluster.latency_s())

    # ---- reading

    def assignment(self) -> frozenset[TopicPartition]:
        """What is read."""
        return frozenset(self._assigned)

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Record]]:
        """Records of some or all assigned partitions, nothing after the time-out."""
        loop, weather = self.cluster.loop, self.cluster.weather
        wait_s = timeout_ms / 1000
        if wait_s:
            wait_s *= 1 + self.cluster.rng.random() * (weather.idle_stretch - 1)
        until = loop.time() + wait_s
        while True:
            if not self._may_fetch.is_set():
                await self._may_fetch.wait()
            found = self._take_records(partitions, max_records or MAX_RECORDS)
            left_s = until - loop.time()
            if found or left_s <= 0 or self._is_stopped:
                return found
            if not await self._wait_for_records(partitions, left_s):
                return {}

    def position_now(self, place: TopicPartition) -> int:
        """Offset of the next record to hand out."""
        position = self._positions.get(place)
        if position is None:
            position = self._positions[place] = self._first_position(place)
        return position

    def highwater(self, partition: TopicPartition) -> int | None:
        """End of the partition as the last fetch has shown it."""
        return self._ends_seen.get(partition)

    def position_of(self, place: TopicPartition) -> int | None:
        """See ``Reader``."""
        return self._positions.get(place) if place in self._assigned else None

    async def position(self, partition: TopicPartition) -> int:
        """As ``position_now``."""
        if partition not in self._assigned:
            raise IllegalStateError(f"Partition {partition} is not assigned")
        return self.position_now(partition)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on from an offset."""
        if partition not in self._assigned:
            raise IllegalStateError(f"No current assignment for partition {partition}")
        self._positions[partition] = offset

    async def seek_to_beginning(self, *partitions: TopicPartition) -> bool:
        """Go on from the oldest record."""
        await self.travel()
        for place in partitions or self._assigned:
            self.seek(place, self.cluster.log(place).start)
        return True

    async def seek_to_end(self, *partitions: TopicPartition) -> bool:
        """Go on after the newest record."""
        await self.travel()
        for place in partitions or self._assigned:
            self.seek(place, self.cluster.log(place).end)
        return True

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Oldest offsets."""
        await self.travel()
        return {place: self.cluster.log(place).start for place in partitions}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Offsets after the newest records."""
        await self.travel()
        return {place: self.cluster.log(place).end for place in partitions}

    async def offsets_for_times(
        self, timestamps: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """First record at or after a time, None if there is none."""
        await self.travel()
        found: dict[TopicPartition, OffsetAndTimestamp | None] = {}
        for place, moment_ms in timestamps.items():
            log = self.cluster.log(place)
            later = (record for record in log.records[log.start :] if record.timestamp >= moment_ms)
            record = next(later, None)
            found[place] = OffsetAndTimestamp(record.offset, record.timestamp) if record else None
        return found

    # ---- committing

    async def committed(self, partition: TopicPartition) -> int | None:
        """The group's offset."""
        await self.travel()
        commit = self._group.coordinator.committed.get(partition)
        return commit.offset if commit is not None else None

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit for the group.

        Raises:
            CommitFailedError: the group has gone on without us.
        """
        if unknown := set(offsets) - set(self._assigned):
            raise IllegalStateError(f"Partitions {unknown} are not assigned")
        if not await self._group.commit(offsets):
            raise CommitFailedError("the group has already rebalanced")

    # ----

    @property
    def _group(self) -> Membership:
        assert self._membership is not None, "a consumer without a group commits nothing"
        return self._membership

    def _first_position(self, place: TopicPartition) -> int:
        log = self.cluster.log(place)
        if self._membership is not None:
            commit = self._membership.coordinator.committed.get(place)
            if commit is not None:
                return commit.offset
        if self._reset == "none":
            raise NoOffsetForPartitionError(place)
        return log.start if self._reset == "earliest" else log.end

    def _take_records(
        self, partitions: tuple[TopicPartition, ...], max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        found: dict[TopicPartition, list[Record]] = {}
        left = max_records
        for place in self._assigned:
            if left <= 0 or (partitions and place not in partitions):
                continue
            log, position = self.cluster.log(place), self.position_now(place)
            self._ends_seen[place] = log.end
            if position < log.start or position > log.end:
                if self._reset == "none":
                    raise OffsetOutOfRangeError({place: position})
                position = log.start if self._reset == "earliest" else log.end
            taken = log.records[position : position + self._few(left)]
            if taken:
                found[place] = taken
                left -= len(taken)
                self._positions[place] = position + len(taken)
        return found

    def _few(self, limit: int) -> int:
        """A fetch brings as much as it likes."""
        return limit if self.cluster.rng.random() < 0.7 else min(limit, 1 + int(self.cluster.rng.random() * 4))

    async def _wait_for_records(self, partitions: tuple[TopicPartition, ...], timeout_s: float) -> bool:
        """False after the time-out."""
        cluster, woken = self.cluster, self.cluster.loop.create_future()

        def arrive() -> None:
            if not woken.done():
                woken.set_result(True)

        def time_out() -> None:
            if not woken.done():
                woken.set_result(False)

        watched = [cluster.log(place) for place in self._assigned if not partitions or place in partitions]
        for log in watched:
            log.watchers[self] = lambda: cluster.later(cluster.fetch_delay_s(), arrive)
        timer = cluster.loop.call_later(timeout_s, time_out)
        try:
            return await woken
        finally:
            timer.cancel()
            for log in watched:
                log.watchers.pop(self, None)
