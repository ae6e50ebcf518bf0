"""The producer of the simulation: what ``AIOKafkaProducer`` shows to production code, with every fate of a send."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError
from aiokafka.structs import RecordMetadata
from simulator.cluster import Cluster, Headers
from simulator.connections import Connections
from simulator.processes import Process, current_process

LATE_S = 12.0
"""A record whose sender was shown an error may land this much later."""


@dataclass
class _Sending:
    place: TopicPartition
    key: bytes | None
    value: bytes | None
    headers: Headers
    sender: Process
    acknowledged: asyncio.Future[RecordMetadata] | None


class SimulatedProducer:
    """One client. A record on its way survives its process or not, and a frozen process may keep it back."""

    cluster: Cluster

    def __init__(self, **options: Any) -> None:
        self._is_idempotent = bool(options.get("enable_idempotence"))
        self._process = current_process()
        self.client = Connections()

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Disconnect."""

    async def partitions_for(self, topic: str) -> set[int]:
        """Numbers of the partitions."""
        return {log.partition for log in self.cluster.partitions(topic)}

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers | None = None,
    ) -> asyncio.Future[RecordMetadata]:
        """Hand the record to the network; the future is its acknowledgement.

        Raises:
            KafkaTimeoutError: it was not taken, and will never land.
        """
        cluster = self.cluster
        rng, weather = cluster.rng, cluster.weather
        chosen = zlib.crc32(key or b"") % len(cluster.partitions(topic)) if partition is None else partition
        acknowledged: asyncio.Future[RecordMetadata] = cluster.loop.create_future()
        sending = _Sending(TopicPartition(topic, chosen), key, value, headers or (), self._process, acknowledged)
        draw = rng.random()
        if draw < weather.refused:
            raise KafkaTimeoutError
        draw -= weather.refused
        if draw < weather.unknown_outcome:
            self._lose_sight_of(sending)
            return acknowledged
        draw -= weather.unknown_outcome
        cluster.later(cluster.latency_s(), lambda: self._arrive(sending))
        if draw < weather.twice and not self._is_idempotent:
            copy = _Sending(sending.place, key, value, sending.headers, self._process, None)
            cluster.later(cluster.latency_s() + rng.random() * 2, lambda: self._arrive(copy))
        return acknowledged

    def _lose_sight_of(self, sending: _Sending) -> None:
        cluster, acknowledged = self.cluster, sending.acknowledged
        rng = cluster.rng
        sending.acknowledged = None
        fate = rng.random()
        if fate < 0.3:
            cluster.later(cluster.latency_s(), lambda: self._arrive(sending))
        elif fate < 0.75:
            cluster.later(rng.random() * LATE_S, lambda: self._arrive(sending))

        def show_error() -> None:
            if acknowledged is not None and not acknowledged.done():
                acknowledged.set_exception(KafkaTimeoutError())

        cluster.later(0.05 + rng.random() * 2, show_error)

    def _arrive(self, sending: _Sending) -> None:
        cluster, sender = self.cluster, sending.sender
        rng = cluster.rng
        if not sender.is_alive and rng.random() < 0.5:
            if rng.random() < 0.5:  # lands late, long after its sender died
                sending.sender = _DETACHED
                cluster.later(rng.random() * LATE_S, lambda: self._arrive(sending))
            return
        if sender.is_frozen and rng.random() < 0.6:  # still in the buffer: leaves when the process is woken
            sender.on_wake.append(lambda: cluster.later(cluster.latency_s(), lambda: self._arrive(sending)))
            return
        record = cluster.append(sending.place, sending.key, sending.value, sending.headers, sending.sender)
        if sending.acknowledged is not None:
            where = RecordMetadata(
                record.topic,
                record.partition,
                TopicPartition(record.topic, record.partition),
                record.offset,
                record.timestamp,
                0,
                0,
            )
            cluster.later(cluster.latency_s() / 2, lambda: self._acknowledge(sending, where))

    def _acknowledge(self, sending: _Sending, where: RecordMetadata) -> None:
        if sending.acknowledged is not None and not sending.acknowledged.done():
            sending.acknowledged.set_result(where)


_DETACHED = Process("the network", -1)
