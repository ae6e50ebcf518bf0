"""Whether topics that are in use are deleted, or made anew, under their users: a Kafka client would wait for ever."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from rollstream.schemas.errors import DataLossError, RollstreamError, TransientError, single_errors
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import list_topics

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
ENDS_DEADLINE_S = 10.0
MISSING_LOOKS = 3
MISSING_PAUSE_S = 1.0
"""A broker that has just come back may not know its topics for a moment."""

Ends = Mapping[str, list[int] | None]


async def topic_ends(kafka: KafkaSettings, topics: Iterable[str]) -> dict[str, list[int] | None]:
    """Per topic (full name) the ends of its partitions now; None if it does not exist.

    Raises:
        TransientError: the broker does not answer.
    """
    wanted = set(topics)
    partitions: dict[str, int] = {}
    for look in range(MISSING_LOOKS):
        partitions = {state.name: state.partitions for state in await list_topics(kafka) if state.name in wanted}
        if len(partitions) == len(wanted):
            break
        if look < MISSING_LOOKS - 1:
            await asyncio.sleep(MISSING_PAUSE_S)
    places = [TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)]
    consumer = await start_consumer(kafka)
    try:
        async with asyncio.timeout(ENDS_DEADLINE_S):
            ends = await consumer.end_offsets(places) if places else {}
    except (TimeoutError, KafkaError) as error:
        raise TransientError(f"the broker does not say the ends of {sorted(partitions)}: {error!r}") from error
    finally:
        await stop_consumer(consumer)
    return {
        topic: [ends[TopicPartition(topic, number)] for number in range(partitions[topic])]
        if topic in partitions
        else None
        for topic in wanted
    }


def what_is_lost(before: Ends, now: Ends) -> str | None:
    """What has become of the topics since ``before``, if they are not the same logs any more. Pure."""
    for topic, ends in sorted(now.items()):
        former = before.get(topic)
        if ends is None:
            return f"topic {topic!r} was deleted while it was in use; make it again with 'rollstream topics apply'"
        for partition, (old, new) in enumerate(zip(former or [], ends, strict=False)):
            if new < old:
                return (
                    f"{topic}/{partition} ended at {old} and ends at {new} now: the topic was made anew, or "
                    "has lost its end, while it was in use"
                )
    return None


async def watch_topics(kafka: KafkaSettings, topics: Iterable[str], *, every_s: float = LOOK_EVERY_S) -> None:
    """Look again and again until cancelled; a broker that does not answer is no finding.

    Raises:
        DataLossError: a topic (full name) was deleted or made anew: whoever uses it should stop and say so.
    """
    names, before = tuple(topics), dict[str, list[int] | None]()
    while True:
        try:
            now = await topic_ends(kafka, names)
        except RollstreamError as error:
            logger.debug("the topics cannot be looked at now: %s", error)
        else:
            lost = what_is_lost(before, now)
            if lost is not None:
                raise DataLossError(f"{lost}; records that were in it are gone: start again when this is understood")
            before = now
        await asyncio.sleep(every_s)


@asynccontextmanager
async def watched_topics(kafka: KafkaSettings, topics: Iterable[str]) -> AsyncGenerator[None]:
    """Run the block while ``watch_topics`` watches; what it finds ends the block.

    Raises:
        DataLossError: as ``watch_topics``; whatever the block raises, the first error of a group.
    """
    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch_topics(kafka, topics))
            yield
            watching.cancel()
    except ExceptionGroup as failures:
        raise next(single_errors(failures)) from failures
