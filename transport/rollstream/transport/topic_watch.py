"""Whether topics that are in use are deleted, or made anew, under their users: a Kafka client would wait for ever.

Topics that the user may not look at are not watched, which is said once.
"""
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
from rollstream.transport.topic_admin import denied_topics, topic_partitions

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
        partitions = {name: count for name, count in (await topic_partitions(kafka)).items() if name in wanted}
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

    Returns at once if none of the topics may be looked at.

    Raises:
        DataLossError: a topic (full name) was deleted or made anew: whoever uses it should stop and say so.
    """
    names, before = frozenset(topics), dict[str, list[int] | None]()
    is_narrowed = False
    while names:
        try:
            if not is_narrowed:
                names -= await _denied(kafka, names)
                is_narrowed = True
            now = await topic_ends(kafka, names)
        except RollstreamError as error:
            logger.debug("the topics cannot be looked at now: %s", error)
        else:
            lost = what_is_lost(before, now)
            if lost is not None:
                raise DataLossError(f"{lost}; records that were in it are gone: start again when this is understood")
            before = now
        await asyncio.sleep(every_s)


async def _denied(kafka: KafkaSettings, names: frozenset[str]) -> frozenset[str]:
    denied = await denied_topics(kafka, names)
    if denied:
        logger.warning("not watched, as %r may not look at them: %s", kafka.sasl_username, ", ".join(sorted(denied)))
    return denied


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
