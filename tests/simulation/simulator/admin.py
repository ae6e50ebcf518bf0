"""The admin client of the simulation: what production code asks of ``AIOKafkaAdminClient``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from aiokafka import OffsetAndMetadata, TopicPartition
from simulator.cluster import Cluster

UNKNOWN_TOPIC = 3


class SimulatedAdmin:
    """Reads what there is; topics are made by the simulation."""

    cluster: Cluster

    def __init__(self, **options: Any) -> None:
        self._options = options

    async def start(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Disconnect."""

    async def describe_topics(self, topics: Sequence[str]) -> list[dict[str, Any]]:
        """As the broker describes them; missing ones have an error code."""
        return [
            {
                "topic": topic,
                "error_code": 0 if self.cluster.has(topic) else UNKNOWN_TOPIC,
                "partitions": [
                    {"partition": log.partition, "leader": 1, "replicas": [1]}
                    for log in (self.cluster.partitions(topic) if self.cluster.has(topic) else ())
                ],
            }
            for topic in topics
        ]

    async def list_topics(self) -> list[str]:
        """Names of all topics."""
        return self.cluster.names()

    async def describe_configs(self, resources: Sequence[Any]) -> list[Any]:
        """Nothing is ever deleted by time or size here."""
        keeps_all = [("retention.ms", "-1", False, 1, False), ("retention.bytes", "-1", False, 1, False)]
        described = [(0, "", resource.resource_type, resource.name, keeps_all) for resource in resources]
        return [SimpleNamespace(resources=described)]

    async def list_consumer_group_offsets(
        self, group_id: str, partitions: Sequence[TopicPartition] | None = None
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Commits with their metadata; asked for by name, a missing one has offset -1."""
        await asyncio.sleep(self.cluster.latency_s())
        group = self.cluster.groups.get(group_id)
        committed = group.committed if group is not None else {}
        if partitions is None:
            return dict(committed)
        return {place: committed.get(place, OffsetAndMetadata(-1, "")) for place in partitions}
