"""Sends messages and returns when the broker has them.

Duty: encode, compress, send, and repeat until acknowledged or out of time.

Invariants: what ``publish`` returned for is in the log. What it raised for may be there too: a send whose answer was
lost is repeated, so readers know a message by its id, unless it is marked as not repeatable: that one is in the log at
most once. Order is kept only between calls that follow one another.

Broker gone: sends wait and repeat until their deadline; at most ``max_in_flight`` wait, further ones wait for a slot.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import cache
from types import TracebackType

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    UnknownTopicOrPartitionError,
)
from prometheus_client import Counter, Histogram

from rollstream.schemas.codec import EncodedRecord, encode
from rollstream.schemas.errors import InvalidMessageError, TransientError
from rollstream.schemas.messages import Message
from rollstream.transport import metrics
from rollstream.transport.clients import (
    DENIED,
    FIRST_RETRY_S,
    MAX_RETRY_S,
    Profile,
    denied,
    start_producer,
    stop_producer,
)
from rollstream.transport.message_size import large_parts_bytes
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tracing import trace_headers

logger = logging.getLogger(__name__)

DEADLINE_S = 300.0
MAX_IN_FLIGHT = 256
THREAD_ABOVE_BYTES = 128 * 1024
"""Encoding and compressing this much would hold up the event loop for about a millisecond."""
TOPIC_LOOKUP_S = 5.0
LEAVE_S = 1.0
"""Whatever is still in flight when a publisher is left has nobody who waits for it."""

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """Where an acknowledged record lies."""

    topic: str
    partition: int
    offset: int


class Publisher:
    """An async context manager; safe for many tasks at once.

    Args:
        kafka: cluster and topics.
        profile: ``durable`` or ``rpc``, see `clients`.
        deadline_s: time within which a message must be acknowledged, waiting for a slot included.
        max_in_flight: messages that may wait for their acknowledgement.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        profile: Profile = "durable",
        deadline_s: float = DEADLINE_S,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._kafka = kafka
        self._profile: Profile = profile
        self._deadline_s = deadline_s
        self._slots = asyncio.Semaphore(max_in_flight)
        self._limits = {topic.name: topic.max_value_bytes for topic in kafka.topics.values()}
        self._checked: set[tuple[str, int | None]] = set()
        self._renewing = asyncio.Lock()
        self._started: AIOKafkaProducer | None = None
        self._is_left = False

    async def __aenter__(self) -> Publisher:
        self._started = await start_producer(self._kafka, profile=self._profile)
        self._is_left = False
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._is_left = True  # what is still in flight fails now, and nobody would stop another producer
        await stop_producer(self._producer, timeout_s=LEAVE_S)

    async def publish(
        self,
        message: Message | EncodedRecord,
        *,
        key: str | bytes | None,
        topic: str | None = None,
        partition: int | None = None,
        deadline_s: float | None = None,
        is_repeatable: bool = True,
    ) -> RecordPlace:
        """Send a message and wait until it is in the log. At least once; safe to repeat.

        Args:
            message: encoded here, in a thread if it is large; or encoded already, and then with a ``topic``.
            key: of the record; decides the partition unless one is given.
            topic: full name; by default the message's own topic.
            partition: explicit partition.
            deadline_s: instead of the publisher's.
            is_repeatable: False, for ``durable`` publishers only: at most once. What may be in the log is not sent
                again; the place returned has the offset -1 if the broker no longer knows where it lies.

        Raises:
            InvalidMessageError: the message breaks a rule, is too large for the topic, or the partition does not exist.
            SettingsError: the topic is not declared.
            TopicDeniedError: writing to it is not permitted.
            TransientError: not acknowledged in time, or not repeatable and its fate unknown; it may be in the log all
                the same.
        """
        assert is_repeatable or self._profile == "durable", "only an idempotent producer sends at most once"
        name = topic if topic is not None else self._topic_of(message)
        allowed_s = self._deadline_s if deadline_s is None else deadline_s
        sending = _Sending(name, key.encode() if isinstance(key, str) else key, partition, is_repeatable)
        started = time.monotonic()
        try:
            async with asyncio.timeout(allowed_s), self._slots:
                with metrics.PUBLISHES_IN_FLIGHT.track_inprogress():
                    record = await _encoded(message)
                    self._check_size(name, _schema(message), len(record.value))
                    place = await self._send_until_acknowledged(sending, record)
        except TimeoutError:
            raise TransientError(
                f"a {_schema(message)} for {name!r} was not acknowledged within {allowed_s:g} s; last: "
                f"{sending.last_failure}"
            ) from None
        counters = _counters(name)
        counters.records.inc()
        counters.size_bytes.inc(len(record.value))
        counters.seconds.observe(time.monotonic() - started)
        return place

    def _topic_of(self, message: Message | EncodedRecord) -> str:
        assert isinstance(message, Message), "an encoded record does not say where it belongs: give its topic"
        return self._kafka.topic(message.topic)

    def _check_size(self, topic: str, schema: str, size_bytes: int) -> None:
        # Known here, because a refused batch leaves a gap in the numbers of an idempotent producer.
        limit = self._limits.get(topic)
        if limit is not None and size_bytes > limit:
            raise _too_large(topic, schema, size_bytes, f"at most {limit} bytes are allowed")

    async def _send_until_acknowledged(self, sending: _Sending, record: EncodedRecord) -> RecordPlace:
        retry_s = FIRST_RETRY_S
        headers = [*record.headers, *trace_headers()]
        while True:
            producer = self._producer
            try:
                await self._check_partition(producer, sending)
                acknowledged = await producer.send(
                    sending.topic, record.value, sending.key, sending.partition, headers=headers
                )
                sending.may_be_in_log = True
                metadata = await acknowledged
                if metadata.offset >= 0 or not sending.is_repeatable:
                    return RecordPlace(metadata.topic, metadata.partition, metadata.offset)
                sending.last_failure = "the broker has the record but no longer knows where"
            except _TOO_LARGE as error:
                await self._renew(producer)
                rule = f"the broker refuses it: {error}"
                raise _too_large(sending.topic, _schema(record), len(record.value), rule) from error
            except DENIED as error:
                await self._renew(producer)
                raise denied(error, self._kafka) from error
            except KafkaError as error:
                sending.last_failure = repr(error)
                self._checked.clear()
                logger.warning("send to %s failed: %r", sending.topic, error)
                if not error.retriable and not isinstance(error, KafkaTimeoutError):
                    await self._renew(producer)
                if sending.may_be_in_log and not sending.is_repeatable:
                    raise TransientError(
                        f"whether a record for {sending.topic!r} is in the log is not known ({error!r}); it is not "
                        "sent again, because it must not be there twice"
                    ) from error
            metrics.PUBLISH_RETRIES.labels(sending.topic).inc()
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, MAX_RETRY_S)

    async def _check_partition(self, producer: AIOKafkaProducer, sending: _Sending) -> None:
        """A missing topic would otherwise block the send for its whole time-out."""
        if (sending.topic, sending.partition) in self._checked:
            return
        try:
            async with asyncio.timeout(TOPIC_LOOKUP_S):
                partitions = await producer.partitions_for(sending.topic)
        except TimeoutError:
            raise UnknownTopicOrPartitionError(
                f"the broker does not answer or has no topic {sending.topic!r} (`rollstream topics check`)"
            ) from None
        if sending.partition is not None and sending.partition not in partitions:
            raise InvalidMessageError(
                f"partition {sending.partition} of {sending.topic!r} does not exist, it has {len(partitions)} of them"
            )
        self._checked.add((sending.topic, sending.partition))

    async def _renew(self, failed: AIOKafkaProducer) -> None:
        """Replace a producer that cannot go on: after a refused batch the broker takes no further numbers from it."""
        async with self._renewing:
            if self._started is failed and not self._is_left:
                self._started = await start_producer(self._kafka, profile=self._profile)
                await stop_producer(failed)

    @property
    def _producer(self) -> AIOKafkaProducer:
        assert self._started is not None, "use Publisher as an async context manager"
        return self._started


@dataclass(slots=True)
class _Sending:
    topic: str
    key: bytes | None
    partition: int | None
    is_repeatable: bool
    may_be_in_log: bool = False
    last_failure: str = "none; it waited for a slot or for the broker"


def _too_large(topic: str, schema: str, size_bytes: int, rule: str) -> InvalidMessageError:
    return InvalidMessageError(
        f"a {schema} of {size_bytes} bytes (as sent) is too large for topic {topic!r}: {rule}; shorten the episode "
        "limits, or raise max.message.bytes of the topic"
    )


def _schema(message: Message | EncodedRecord) -> str:
    return type(message).__name__ if isinstance(message, Message) else dict(message.headers)["schema"].decode()


async def _encoded(message: Message | EncodedRecord) -> EncodedRecord:
    if isinstance(message, EncodedRecord):
        return message
    if large_parts_bytes(message) > THREAD_ABOVE_BYTES:
        return await asyncio.to_thread(encode, message)
    return encode(message)


@cache
def _counters(topic: str) -> _Counters:
    return _Counters(
        metrics.PUBLISHED.labels(topic), metrics.PUBLISHED_BYTES.labels(topic), metrics.PUBLISH_SECONDS.labels(topic)
    )


@dataclass(frozen=True, slots=True)
class _Counters:
    """The metrics of one topic, looked up once."""

    records: Counter
    size_bytes: Counter
    seconds: Histogram
