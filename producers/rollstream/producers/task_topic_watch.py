"""Whether the `tasks` topic still is the one that a producer sends to: it may be deleted, or made anew, under it."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from rollstream.schemas.errors import DataLossError, TransientError
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import list_topics

logger = logging.getLogger(__name__)

ENDS_DEADLINE_S = 10.0
MISSING_LOOKS = 3
MISSING_PAUSE_S = 1.0
"""A broker that has just come back may not know its topics for a moment."""


class TaskTopicWatch:
    """Compares what was acknowledged with how much the topic has grown since ``end_offsets``."""

    def __init__(self, kafka: KafkaSettings, run_id: str, end_offsets: Sequence[int]) -> None:
        self._kafka = kafka
        self._run_id = run_id
        self._end_offsets = end_offsets
        self.tasks_acknowledged = 0

    async def run(self, over: asyncio.Event, *, every_s: float) -> None:
        """Look now and then until ``over``; a broker that does not answer is no finding.

        Raises:
            DataLossError: the topic was deleted or made anew.
        """
        while not over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await over.wait()
                    return
            try:
                await self.check()
            except TransientError as error:
                logger.debug("the topic of the tasks cannot be looked at now: %s", error)

    async def check(self) -> None:
        """Look once.

        Raises:
            DataLossError: the topic was deleted or made anew.
            TransientError: the broker does not answer.
        """
        sent, topic = self.tasks_acknowledged, self._kafka.topic("tasks")
        ends = await _task_end_offsets(self._kafka)
        if ends is None:
            raise DataLossError(
                f"topic {topic!r} was deleted while run {self._run_id!r} was sent: its tasks are gone; make it again "
                "with 'rollstream topics apply' and choose another --run"
            )
        grown_by = sum(ends) - sum(self._end_offsets)
        if grown_by < sent:
            raise DataLossError(
                f"{sent} tasks of run {self._run_id!r} were sent, but topic {topic!r} has grown by {grown_by} records: "
                "it was made anew meanwhile and the tasks before are gone; choose another --run"
            )


async def _task_end_offsets(kafka: KafkaSettings) -> list[int] | None:
    """The ends of the partitions of `tasks` now; None if there is no such topic.

    Raises:
        TransientError: the broker does not answer.
    """
    topic = kafka.topic("tasks")
    for _ in range(MISSING_LOOKS):
        found = next((state for state in await list_topics(kafka) if state.name == topic), None)
        if found is not None:
            return await _ends(kafka, [TopicPartition(topic, partition) for partition in range(found.partitions)])
        await asyncio.sleep(MISSING_PAUSE_S)
    return None


async def _ends(kafka: KafkaSettings, partitions: list[TopicPartition]) -> list[int]:
    consumer = await start_consumer(kafka)
    try:
        async with asyncio.timeout(ENDS_DEADLINE_S):
            ends = await consumer.end_offsets(partitions)
    except (TimeoutError, KafkaError) as error:
        raise TransientError(f"the broker does not say the ends of {partitions[0].topic!r}: {error!r}") from error
    finally:
        await stop_consumer(consumer)
    return [ends[partition] for partition in partitions]
