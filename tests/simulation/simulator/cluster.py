"""Kafka in memory: the part that is outside of all processes. Logs, their limits, and the network between.

Semantics are those measured on a real broker: a record is visible at once and in one order to everybody, an
acknowledgement is another matter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from simulator.processes import Process
from simulator.virtual_loop import VirtualLoop

if TYPE_CHECKING:
    from simulator.groups import GroupCoordinator

Record = ConsumerRecord[bytes | None, bytes | None]
Headers = Sequence[tuple[str, bytes]]

OUTSIDE = Context()
"""Of callbacks that belong to no process."""


@dataclass
class Weather:
    """How bad the network is. Probabilities are per send; all zero once the faults are over."""

    unknown_outcome: float = 0.0
    """The client is shown an error; the record lands now, later, or never."""
    refused: float = 0.0
    """``send`` itself fails; the record never lands."""
    twice: float = 0.0
    """A producer without numbers sends again by itself: the record lands twice."""
    slow: float = 0.05
    """A request takes up to ``slow_s`` instead of milliseconds."""
    slow_s: float = 0.5
    lagging: float = 0.0
    """New records reach a consumer this often only after up to ``lag_s``: reading stays behind writing."""
    lag_s: float = 3.0
    idle_stretch: float = 8.0
    """An idle poll may last so many times longer than asked for: as in a process that is busy otherwise."""


@dataclass
class PartitionLog:
    """One partition. Offsets are dense; ``start`` is the first one that retention has left."""

    topic: str
    partition: int
    records: list[Record] = field(default_factory=list[Record])
    start: int = 0
    watchers: dict[object, Callable[[], None]] = field(default_factory=dict[object, Callable[[], None]])
    """Idle consumers, told once of the next record."""

    @property
    def end(self) -> int:
        """Offset after the newest record."""
        return len(self.records)


class Reader(Protocol):
    """A consumer."""

    def position_of(self, place: TopicPartition) -> int | None:
        """Offset of the next record it hands out; None if it does not read the partition."""
        ...


Append = Callable[[Record, Process | None], None]
Commit = Callable[[str, TopicPartition, OffsetAndMetadata], None]


class Cluster:
    """All topics and groups. Observers are told synchronously, in the very step in which something becomes true."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, weather: Weather) -> None:
        self.loop = loop
        self.rng = rng
        self.weather = weather
        self.groups: dict[str, GroupCoordinator] = {}
        self.on_append: list[Append] = []
        self.on_commit: list[Commit] = []
        self.readers: dict[Process, list[Reader]] = {}
        """Consumers by process."""
        self._topics: dict[str, list[PartitionLog]] = {}

    def read_position(self, process: Process, place: TopicPartition) -> int:
        """How far a process has read a partition; -1 if it does not."""
        positions = (reader.position_of(place) for reader in self.readers.get(process, ()))
        return max((position for position in positions if position is not None), default=-1)

    def create(self, topic: str, partitions: int) -> None:
        """A new topic."""
        self._topics[topic] = [PartitionLog(topic, number) for number in range(partitions)]

    def names(self) -> list[str]:
        """Names of all topics."""
        return list(self._topics)

    def has(self, topic: str) -> bool:
        """Whether the topic exists."""
        return topic in self._topics

    def partitions(self, topic: str) -> list[PartitionLog]:
        """All partitions of a topic."""
        return self._topics[topic]

    def log(self, place: TopicPartition) -> PartitionLog:
        """One partition."""
        return self._topics[place.topic][place.partition]

    def append(
        self,
        place: TopicPartition,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        sender: Process | None,
    ) -> Record:
        """The record is in the log."""
        log = self.log(place)
        record: Record = ConsumerRecord(
            topic=place.topic,
            partition=place.partition,
            offset=log.end,
            timestamp=int(self.loop.time() * 1000),
            timestamp_type=0,
            key=key,
            value=value,
            checksum=None,
            serialized_key_size=-1,
            serialized_value_size=-1,
            headers=tuple(headers),
        )
        log.records.append(record)
        for observe in self.on_append:
            observe(record, sender)
        watchers, log.watchers = log.watchers, {}
        for wake in watchers.values():
            wake()
        return record

    def latency_s(self) -> float:
        """One way through the network."""
        rng, weather = self.rng, self.weather
        if weather.slow and rng.random() < weather.slow:
            return rng.random() * weather.slow_s
        return 0.0005 + rng.random() * 0.004

    def fetch_delay_s(self) -> float:
        """From a record's arrival in the log to its arrival at a consumer that waits for it."""
        if self.weather.lagging and self.rng.random() < self.weather.lagging:
            return self.rng.random() * self.weather.lag_s
        return self.latency_s()

    def later(self, delay_s: float, action: Callable[[], object]) -> None:
        """Something happens outside of all processes."""
        self.loop.call_at(self.loop.time() + delay_s, action, context=OUTSIDE)


def places(topics: Iterable[str], cluster: Cluster) -> list[TopicPartition]:
    """All partitions of several topics."""
    return [TopicPartition(topic, log.partition) for topic in topics for log in cluster.partitions(topic)]
