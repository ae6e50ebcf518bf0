"""Where records go that cannot be processed: whole, with where they were, why, and how often they were tried.

Invariant: a record's offset may be passed when ``bury`` has returned, and not before. A broker that is away holds the
record up, it does not end the worker. Several may bury one record: readers count that as one letter.
"""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import dataclass
from types import TracebackType

import msgspec

from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError
from rollstream.transport import metrics
from rollstream.transport.acknowledgement import until_acknowledged
from rollstream.transport.clients import require_topics
from rollstream.transport.publisher import DEADLINE_S, Publisher, RecordPlace
from rollstream.transport.records import Record, record_headers
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

MAX_ERROR_CHARS = 4_000
MAX_STACK_CHARS = 8_000
STORY_BYTES = 64 * 1024
"""Room for everything in a letter but the record itself."""
MAX_KEY_BYTES = 16 * 1024
"""A letter that must be cut keeps so much of the key at most, since it carries it twice."""
HEADER_FRAME_BYTES = 16
"""Lengths around a header."""
SMALLEST_LIMIT_BYTES = 512 * 1024
"""Fits even where the topic was made with the broker's default limit of a mebibyte."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a record is given up, where the exception itself is no longer at hand."""

    type: str
    text: str
    stack: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Cause:
        """What is kept of an exception: of a long text the beginning, of a long stack the end."""
        stack = "".join(traceback.format_exception(error))
        return cls(type(error).__name__, _encodable(str(error)[:MAX_ERROR_CHARS]), _encodable(stack[-MAX_STACK_CHARS:]))


class DeadLetterOffice:
    """An async context manager that buries the records one role cannot process.

    Args:
        kafka: cluster and topics.
        role: who buries, e.g. ``rollout-worker``.
        worker_id: which one of them.
        try_s: after so long it is logged that the broker is still away, and the letter is sent anew.

    Raises:
        SettingsError: on entering: there is no topic for dead letters.
        TopicDeniedError: on entering: it may not be looked at.
    """

    def __init__(self, kafka: KafkaSettings, *, role: str, worker_id: str, try_s: float = DEADLINE_S) -> None:
        self._kafka = kafka
        self._limit_bytes = kafka.topics[DeadLetter.topic].max_value_bytes
        self._publisher = Publisher(kafka, profile="durable", deadline_s=try_s)
        self._role = role
        self._worker_id = worker_id

    async def __aenter__(self) -> DeadLetterOffice:
        await require_topics(self._kafka, self._kafka.topic(DeadLetter.topic))
        await self._publisher.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._publisher.__aexit__(exc_type, exc, tb)

    async def bury(
        self, record: Record, error: BaseException | Cause, *, attempts: int = 1, deadline_s: float | None = None
    ) -> RecordPlace:
        """Return when the letter is acknowledged; only then may the record's offset be passed.

        Safe to repeat: letters of one record name its coordinates and count as one.

        Args:
            record: kept whole; of one that does not fit, as much as fits (``bytes_missing``).
            error: the cause; its stack is kept.
            attempts: how often the record was tried.
            deadline_s: None: until the broker has it, however long it is away.

        Raises:
            TransientError: not acknowledged within ``deadline_s``: try again, the record must not be passed.
            TopicDeniedError: writing to the topic is not permitted.
        """
        letter = self.letter(record, error, attempts)
        if deadline_s is None:
            place = await until_acknowledged(lambda: self._publish_as_fits(letter, None))
        else:
            place = await self._publish_as_fits(letter, deadline_s)
        metrics.DEAD_LETTERS.labels(record.topic, letter.error_type).inc()
        return place

    def letter(self, record: Record, error: BaseException | Cause, attempts: int) -> DeadLetter:
        """What ``bury`` would publish now if there were no limit."""
        return dead_letter(
            record, error, role=self._role, worker_id=self._worker_id, attempts=attempts, failed_at=time.time()
        )

    async def _publish_as_fits(self, letter: DeadLetter, deadline_s: float | None) -> RecordPlace:
        """Whole, which may be possible by compression; else cut to the topic's limit; else to that of any broker."""
        for limit_bytes in (None, self._limit_bytes, SMALLEST_LIMIT_BYTES):
            fitting = letter if limit_bytes is None else cut(letter, limit_bytes)
            try:
                return await self._publisher.publish(fitting, key=fitting.key, deadline_s=deadline_s)
            except InvalidMessageError as error:
                if limit_bytes == SMALLEST_LIMIT_BYTES:
                    raise
                logger.warning("the letter of a large record is cut: %s", error)
        raise AssertionError("the last limit returns or raises")


def dead_letter(
    record: Record, error: BaseException | Cause, *, role: str, worker_id: str, attempts: int, failed_at: float
) -> DeadLetter:
    """The letter for a record. Pure."""
    cause = error if isinstance(error, Cause) else Cause.of(error)
    return DeadLetter(
        origin_topic=record.topic,
        origin_partition=record.partition,
        origin_offset=record.offset,
        key=record.key,
        value=record.value,
        headers=record_headers(record),
        role=role,
        worker_id=worker_id,
        error_type=cause.type,
        error=cause.text,
        stack=cause.stack,
        attempts=attempts,
        failed_at=failed_at,
    )


def cut(letter: DeadLetter, limit_bytes: int) -> DeadLetter:
    """The letter with as much of its record as surely fits into ``limit_bytes``, and the count of what is missing.

    Pure. Cut are the end of the value, then the last headers, then the end of the key.
    """
    room = limit_bytes - STORY_BYTES
    key = letter.key
    if key is not None and _record_bytes(letter) + len(key) > room:
        key = key[:MAX_KEY_BYTES]
    room -= 2 * len(key or b"")
    headers: list[tuple[str, bytes]] = []
    for name, data in letter.headers:
        room -= len(name.encode()) + len(data) + HEADER_FRAME_BYTES
        if room < 0:
            break
        headers.append((name, data))
    value = letter.value[: max(0, room)] if letter.value is not None else None
    shorter = msgspec.structs.replace(letter, key=key, headers=headers, value=value)
    missing = _record_bytes(letter) - _record_bytes(shorter)
    return msgspec.structs.replace(shorter, bytes_missing=letter.bytes_missing + missing)


def _record_bytes(letter: DeadLetter) -> int:
    headers = sum(len(name.encode()) + len(data) for name, data in letter.headers)
    return len(letter.key or b"") + len(letter.value or b"") + headers


def _encodable(text: str) -> str:
    """Lone surrogates, as in the names of odd files, are not text that can be written."""
    return text.encode(errors="backslashreplace").decode()
