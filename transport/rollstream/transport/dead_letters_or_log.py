"""Dead letters of a role that may live without the right to write them: its log has the whole record then.

Invariant: as with the office itself, a record's offset may be passed when ``bury`` has returned. Only a refusal by the
broker leads to the log; a broker that is away holds the record up.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from types import TracebackType

import msgspec

from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import TopicDeniedError
from rollstream.transport import metrics
from rollstream.transport.dead_letters import DeadLetterOffice, cut
from rollstream.transport.publisher import THREAD_ABOVE_BYTES
from rollstream.transport.records import Record, record_place
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger("rollstream.dead_letters")
"""Not under a name whose repeated messages are held back: here each is the only copy of what was in it."""


class DeadLettersOrLog:
    """An async context manager like `DeadLetterOffice`, which it uses as long as the broker permits.

    What is written to the log is the letter as one line of JSON, its bytes in base64, cut to what a letter may hold.

    Raises:
        SettingsError: on entering: there is no topic for dead letters.
    """

    def __init__(self, kafka: KafkaSettings, *, role: str, worker_id: str) -> None:
        self._office = DeadLetterOffice(kafka, role=role, worker_id=worker_id)
        self._topic = kafka.topic(DeadLetter.topic)
        self._limit_bytes = kafka.topics[DeadLetter.topic].max_value_bytes
        self._is_refused = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> DeadLettersOrLog:
        try:
            await self._stack.enter_async_context(self._office)
        except TopicDeniedError as error:
            self._refused(error)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, tb)

    async def bury(self, record: Record, error: BaseException, *, attempts: int = 1) -> None:
        """Return when the letter is acknowledged, or written to the log where the broker does not permit it.

        Safe to repeat, as ``DeadLetterOffice.bury``.
        """
        if not self._is_refused:
            try:
                await self._office.bury(record, error, attempts=attempts)
            except TopicDeniedError as refusal:
                self._refused(refusal)
            else:
                return
        letter = cut(self._office.letter(record, error, attempts), self._limit_bytes)
        if len(letter.value or b"") > THREAD_ABOVE_BYTES:
            await asyncio.to_thread(_log, record_place(record), letter)
        else:
            _log(record_place(record), letter)
        metrics.LOGGED_LETTERS.labels(record.topic, letter.error_type).inc()

    def _refused(self, error: TopicDeniedError) -> None:
        if not self._is_refused:
            logger.warning("records that cannot be processed go to this log, not to %s: %s", self._topic, error)
        self._is_refused = True


def _log(place: str, letter: DeadLetter) -> None:
    logger.error("dead letter of %s: %s", place, msgspec.json.encode(letter).decode())
