"""A worker's own word on what it does, on `control` every few seconds, and a last one when it leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.errors import TransientError
from rollstream.transport.control import control_key
from rollstream.transport.publisher import Publisher

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
"""Between two beats; also how long one may take: a later one says more."""


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
