"""Makes the broker agree with the declared topics, and says in words where it does not."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
# (aiokafka's admin client answers with untyped protocol structs)

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
)
from aiokafka.structs import OffsetAndMetadata

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.transport.clients import admin_client, start_consumer, stop_consumer
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_differences import (
    TopicDifference,
    TopicState,
    find_differences,
    partition_count,
    topic_differences,
)
from rollstream.transport.topics import TopicDeclaration

logger = logging.getLogger(__name__)

TOPIC_DENIED = 29
TOPIC_EXISTS = 36
SET_ON_TOPIC = 1
"""Source of a config value: set on the topic itself, rather than inherited."""
READY_DEADLINE_S = 30.0
READY_POLL_S = 0.05
COORDINATOR_DEADLINE_S = 15.0
COORDINATOR_NOT_READY = (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)


@dataclass(frozen=True, slots=True)
class TopicChange:
    """One thing that ``apply_topics`` did."""

    topic: str
    change: str


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a consumer group is in a partition. ``committed`` is None where it has committed nothing."""

    topic: str
    partition: int
    committed: int | None
    beginning: int
    end: int

    @property
    def lag(self) -> int:
        """Records that are there and not committed."""
        return self.end - max(self.beginning, self.committed or 0)


async def list_topics(kafka: KafkaSettings) -> list[TopicState]:
    """The topics under our prefix, declared or not, by name.

    Raises:
        TransientError: the broker does not answer.
    """
    async with admin_client(kafka) as admin:
        names = [name for name in await admin.list_topics() if name.startswith(kafka.prefix)]
        return await _describe(admin, sorted(names))


async def topic_partitions(kafka: KafkaSettings) -> dict[str, int]:
    """How many partitions each topic under our prefix has (by full name) that we may look at.

    Needs no more rights than to use them, unlike ``list_topics``.

    Raises:
        TransientError: the broker does not answer.
    """
    async with admin_client(kafka) as admin:
        names = [name for name in await admin.list_topics() if name.startswith(kafka.prefix)]
        described = await admin.describe_topics(names) if names else []
    return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]}


async def denied_topics(kafka: KafkaSettings, topics: Iterable[str]) -> frozenset[str]:
    """Those of ``topics`` (full names) that this user may not look at, whether they exist or not.

    Raises:
        TransientError: the broker does not answer.
    """
    async with admin_client(kafka) as admin:
        described = await admin.describe_topics(sorted(topics))
    return frozenset(topic["topic"] for topic in described if topic["error_code"] == TOPIC_DENIED)


async def check_topics(kafka: KafkaSettings) -> list[TopicDifference]:
    """Compare the broker with the declaration. Changes nothing; empty: all is as declared.

    Raises:
        TransientError: the broker does not answer.
    """
    present = {state.name: state for state in await list_topics(kafka)}
    return find_differences(kafka.topics.values(), present)


async def apply_topics(kafka: KafkaSettings, *, grow: bool = False) -> list[TopicChange]:
    """Create missing topics and set configs; returns when the broker shows it. Safe to repeat, and by several at once.

    Partitions are added only with ``grow``; what cannot be mended stays, see ``check_topics``.

    Raises:
        SettingsError: the broker refuses a change.
        TransientError: the broker does not answer.
    """
    declared = {topic.name: topic for topic in kafka.topics.values()}
    async with admin_client(kafka) as admin:
        names = set(await admin.list_topics()) & set(declared)
        present = {state.name: state for state in await _describe(admin, sorted(names))}
        changes = await _create(admin, [topic for name, topic in declared.items() if name not in present])
        for state in present.values():
            changes += await _mend(admin, declared[state.name], state, grow=grow)
        await _wait_until_shown(admin, declared, grow=grow)
    for change in changes:
        logger.info("topic %s: %s", change.topic, change.change)
    return changes


async def consumer_lag(kafka: KafkaSettings, group: str) -> list[PartitionLag]:
    """Lag of a consumer group (full name) in each partition it has committed, by topic and partition.

    Raises:
        TransientError: the broker does not answer.
    """
    async with admin_client(kafka) as admin:
        committed = await _committed(admin, group)
    if not committed:
        return []
    # A consumer without partitions: one that polls answers half a second late.
    consumer = await start_consumer(kafka)
    try:
        partitions: list[TopicPartition] = sorted(committed)
        beginnings = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
    except KafkaError as error:
        raise TransientError(f"the ends of the topics of group {group!r} cannot be read: {error!r}") from error
    finally:
        await stop_consumer(consumer)
    return [
        PartitionLag(
            topic=partition.topic,
            partition=partition.partition,
            committed=committed[partition].offset if committed[partition].offset >= 0 else None,
            beginning=beginnings[partition],
            end=ends[partition],
        )
        for partition in partitions
    ]


async def _committed(admin: AIOKafkaAdminClient, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
    """A broker that has just started makes its topic of offsets at the first question and answers a little later."""
    deadline = time.monotonic() + COORDINATOR_DEADLINE_S
    while True:
        try:
            return await admin.list_consumer_group_offsets(group)
        except COORDINATOR_NOT_READY:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(READY_POLL_S)


async def _describe(admin: AIOKafkaAdminClient, names: Sequence[str]) -> list[TopicState]:
    if not names:
        return []
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    entries: dict[str, list[Any]] = {}
    for response in await admin.describe_configs(resources):
        for code, message, _type, name, configs, *_ in response.resources:
            _check_answer("describe the configs of", name, code, message)
            entries[name] = configs
    return [
        TopicState(
            name=topic["topic"],
            partitions=len(topic["partitions"]),
            replication_factor=min((len(p["replicas"]) for p in topic["partitions"]), default=0),
            config={entry[0]: entry[1] for entry in entries[topic["topic"]] if entry[1] is not None},
            overrides=frozenset(entry[0] for entry in entries[topic["topic"]] if entry[3] == SET_ON_TOPIC),
        )
        for topic in sorted(await admin.describe_topics(list(names)), key=lambda topic: topic["topic"])
        if not topic["error_code"]
    ]


async def _create(admin: AIOKafkaAdminClient, topics: Sequence[TopicDeclaration]) -> list[TopicChange]:
    if not topics:
        return []
    response = await admin.create_topics(
        [NewTopic(t.name, t.partitions, t.replication_factor, topic_configs=dict(t.config)) for t in topics]
    )
    created: list[TopicChange] = []
    partitions = {topic.name: topic.partitions for topic in topics}
    for name, code, message in response.topic_errors:
        if code == TOPIC_EXISTS:  # another process was faster
            continue
        _check_answer("create", name, code, message)
        created.append(TopicChange(name, f"created with {partition_count(partitions[name])}"))
    return created


async def _mend(
    admin: AIOKafkaAdminClient, declared: TopicDeclaration, actual: TopicState, *, grow: bool
) -> list[TopicChange]:
    changes: list[TopicChange] = []
    if grow and actual.partitions < declared.partitions:
        await admin.create_partitions({declared.name: NewPartitions(declared.partitions)})
        changes.append(
            TopicChange(declared.name, f"grown from {actual.partitions} to {partition_count(declared.partitions)}")
        )
    differing = [
        difference
        for difference in topic_differences(declared, actual)
        if difference.aspect not in ("topic", "partitions", "replication_factor")
    ]
    if differing:
        # Not incremental: overrides that are not named are erased, so all of them are sent.
        resource = ConfigResource(ConfigResourceType.TOPIC, declared.name, configs=dict(declared.config))
        for response in await admin.alter_configs([resource]):
            for code, message, _type, name in response.resources:
                _check_answer("set the configs of", name, code, message)
        changes += [TopicChange(d.topic, f"{d.aspect}: {d.actual} -> {d.declared}") for d in differing]
    return changes


def _check_answer(action: str, topic: str, code: int, message: str | None) -> None:
    if code:
        raise SettingsError(
            f"the broker refuses to {action} topic {topic!r} (error {code}): {message or 'no reason given'}"
        )


async def _wait_until_shown(
    admin: AIOKafkaAdminClient, declared: Mapping[str, TopicDeclaration], *, grow: bool
) -> None:
    """The controller has said yes before the brokers know, and a topic exists before its partitions can be written."""
    names = sorted(declared)
    try:
        async with asyncio.timeout(READY_DEADLINE_S):
            while True:
                if all(map(_has_leaders, await admin.describe_topics(names))):
                    present = {state.name: state for state in await _describe(admin, names)}
                    if not any(_is_mended(d, grow=grow) for d in find_differences(declared.values(), present)):
                        return
                await asyncio.sleep(READY_POLL_S)
    except TimeoutError:
        raise TransientError(
            f"the changed topics did not show within {READY_DEADLINE_S:.0f} s; see the log of the broker, then repeat"
        ) from None


def _is_mended(difference: TopicDifference, *, grow: bool) -> bool:
    """Whether ``apply_topics`` has asked the broker to remove the difference."""
    return difference.repair is not None and (grow or difference.aspect != "partitions")


def _has_leaders(topic: dict[str, Any]) -> bool:
    return not topic["error_code"] and all(p["leader"] >= 0 and not p["error_code"] for p in topic["partitions"])
