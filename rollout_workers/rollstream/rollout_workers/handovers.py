"""Starts given back in peace: the journal then does not hold them against their tasks (J7)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from rollstream.schemas.errors import RollstreamError
from rollstream.schemas.journal import JournalRecord

logger = logging.getLogger(__name__)

Send = Callable[[int, JournalRecord], Awaitable[object]]
"""Appends a record to a partition of the journal; raises TransientError."""


class Handovers:
    """Writes `released` records for episodes that this worker has left, beside its other work.

    ``release`` may be called from anywhere, also while an episode is cancelled; ``run`` writes. A record that cannot be
    written costs the task one unclean start, nothing else.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[tuple[int, JournalRecord]] = deque()
        self._news = asyncio.Event()

    def release(self, partition: int, start: JournalRecord) -> None:
        """The worker has left what it began with this start record."""
        released = JournalRecord(
            kind="released",
            trajectory_id=start.trajectory_id,
            attempt=start.attempt,
            key=start.key,
            writer=start.writer,
            birth=0,
        )
        self._waiting.append((partition, released))
        self._news.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write what waits, all at once."""
        waiting = list(self._waiting)
        self._waiting.clear()
        async with asyncio.TaskGroup() as group:
            for partition, record in waiting:
                group.create_task(self._write(partition, record))

    async def _write(self, partition: int, record: JournalRecord) -> None:
        try:
            await self._send(partition, record)
        except RollstreamError as error:
            logger.warning("a start of trajectory %s was not given back: %s", record.trajectory_id, error)
