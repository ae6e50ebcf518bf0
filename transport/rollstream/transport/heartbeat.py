"""A worker's own word on what it does, on `control` every few seconds, and a last one when it leaves.

One whose user may not write to `control` says it in its log instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.errors import TopicDeniedError, TransientError
from rollstream.transport.control import control_key
from rollstream.transport.publisher import Publisher

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
"""Between two beats; also how long one may take: a later one says more."""
LOG_EVERY_S = 60.0
"""Between two statuses in the log of a worker that may not publish them."""


async def beat(publisher: Publisher, status: Callable[[], WorkerStatus]) -> None:
    """Publish the status now and every ``INTERVAL_S`` until cancelled. A lost beat is logged: the next one follows."""
    while True:
        await say(publisher, status())
        await asyncio.sleep(INTERVAL_S)


async def say(publisher: Publisher, status: WorkerStatus) -> None:
    """Publish one status; the last word of a worker has state ``stopped``."""
    try:
        await publisher.publish(status, key=control_key(status), deadline_s=INTERVAL_S)
    except TransientError as error:
        logger.warning("status of %s was not published: %s", status.worker_id, error)


class Heartbeat:
    """The beat of a worker that can do without the right to write to `control`: its first ``say`` finds out.

    That one comes before anything else is sent, as a refusal costs the publisher its producer. A refusal is said once;
    from then on the log has a status a minute, and each change of state.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._is_refused = False
        self._logged: WorkerStatus | None = None

    async def beat(self, status: Callable[[], WorkerStatus]) -> None:
        """Tell the status every ``INTERVAL_S`` until cancelled, the first time after one."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.say(status())

    async def say(self, status: WorkerStatus) -> None:
        """Publish one status; where that is not permitted, log it if it is time to."""
        if not self._is_refused:
            try:
                return await say(self._publisher, status)
            except TopicDeniedError as error:
                self._is_refused = True
                logger.warning("the status of %s is told in its log and metrics only: %s", status.worker_id, error)
        last = self._logged
        if last is None or last.state != status.state or status.updated_at - last.updated_at >= LOG_EVERY_S:
            self._logged = status
            logger.info("status of %s: %s", status.worker_id, msgspec.json.encode(status).decode())
