"""Tells tool workers of sessions that are over. Best effort: a session nobody tells of ends when it has been idle.

Nobody waits for it: what comes while too many wait to be told of, or cannot be sent within seconds, is let go.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Protocol

from rollstream.schemas.errors import RollstreamError
from rollstream.schemas.tools import SessionEnd

logger = logging.getLogger(__name__)

DEADLINE_S = 3.0
MAX_WAITING = 1024
MAX_AT_ONCE = 32
FLUSH_S = 2.0


class Publishing(Protocol):
    """Sends ends; a Publisher does."""

    async def publish(self, message: SessionEnd, *, topic: str, key: str, deadline_s: float) -> object:
        """Return when the broker has acknowledged it. Raises TransientError."""
        ...


class SessionEnds:
    """A bounded queue; ``run()`` must be running in the owner's TaskGroup while it is used.

    Args:
        publisher: the one that has sent the sessions' calls, so that their end follows them.
    """

    def __init__(self, publisher: Publishing, *, max_waiting: int = MAX_WAITING) -> None:
        self._publisher = publisher
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(max_waiting)

    def tell(self, session_id: str, topic: str) -> None:
        """A session whose calls were in ``topic`` is over. Returns at once."""
        try:
            self._queue.put_nowait((session_id, topic))
        except asyncio.QueueFull:
            logger.debug("too many sessions have ended at once, session %s is left to its worker", session_id)

    async def run(self) -> None:
        """Send, until cancelled."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MAX_AT_ONCE and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            async with asyncio.TaskGroup() as group:
                for session_id, topic in batch:
                    group.create_task(self._send(session_id, topic))

    async def flush(self) -> None:
        """Before ``run`` is cancelled: give what waits a moment to be sent."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self._queue.join()

    async def _send(self, session_id: str, topic: str) -> None:
        try:
            end = SessionEnd(session_id=session_id)
            await self._publisher.publish(end, topic=topic, key=session_id, deadline_s=DEADLINE_S)
        except RollstreamError as error:
            logger.debug("no worker was told that session %s is over: %s", session_id, error)
        finally:
            self._queue.task_done()
