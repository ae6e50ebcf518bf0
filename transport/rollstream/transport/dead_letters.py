"""Where records go that cannot be processed: whole, with where they were, why, and how often they were tried."""

from __future__ import annotations

import time
import traceback
from types import TracebackType

from rollstream.schemas.dead_letters import DeadLetter
from rollstream.transport import metrics
from rollstream.transport.publisher import Publisher, RecordPlace
from rollstream.transport.records import Record, record_headers
from rollstream.transport.settings import KafkaSettings

MAX_ERROR_CHARS = 4_000
MAX_STACK_CHARS = 8_000


class DeadLetterOffice:
    """An async context manager that buries the records one role cannot process.

    Args:
        kafka: cluster and topics.
        role: who buries, e.g. ``rollout-worker``.
        worker_id: which one of them.
    """

    def __init__(self, kafka: KafkaSettings, *, role: str, worker_id: str) -> None:
        self._publisher = Publisher(kafka, profile="durable")
        self._role = role
        self._worker_id = worker_id

    async def __aenter__(self) -> DeadLetterOffice:
        await self._publisher.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._publisher.__aexit__(exc_type, exc, tb)

    async def bury(self, record: Record, error: BaseException, *, attempts: int = 1) -> RecordPlace:
        """Return when the letter is acknowledged; only then may the record's offset be passed.

        Safe to repeat: letters of one record are equal but for their time, and name its coordinates.

        Raises:
            TransientError: not acknowledged in time: try again, the record must not be passed.
        """
        letter = dead_letter(
            record, error, role=self._role, worker_id=self._worker_id, attempts=attempts, failed_at=time.time()
        )
        place = await self._publisher.publish(letter, key=record.key)
        metrics.DEAD_LETTERS.labels(record.topic, letter.error_type).inc()
        return place


def dead_letter(
    record: Record, error: BaseException, *, role: str, worker_id: str, attempts: int, failed_at: float
) -> DeadLetter:
    """The letter for a record. Pure. Of a long error the beginning is kept, of a long stack the end."""
    stack = "".join(traceback.format_exception(error))
    return DeadLetter(
        origin_topic=record.topic,
        origin_partition=record.partition,
        origin_offset=record.offset,
        key=record.key,
        value=record.value,
        headers=record_headers(record),
        role=role,
        worker_id=worker_id,
        error_type=type(error).__name__,
        error=_encodable(str(error)[:MAX_ERROR_CHARS]),
        stack=_encodable(stack[-MAX_STACK_CHARS:]),
        attempts=attempts,
        failed_at=failed_at,
    )


def _encodable(text: str) -> str:
    """Lone surrogates, as in the names of odd files, are not text that can be written."""
    return text.encode(errors="backslashreplace").decode()
