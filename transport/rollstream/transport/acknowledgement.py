"""Sending that does not give up: a broker that is away holds the sender up and costs nothing else."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rollstream.schemas.errors import TransientError

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def until_acknowledged(send: Callable[[], Awaitable[T]]) -> T:
    """Repeat ``send``, which waits for its own deadline each time, until the broker has acknowledged; cancel to end it.

    Raises:
        whatever ``send`` raises but TransientError.
    """
    while True:
        try:
            return await send()
        except TransientError as error:
            logger.warning("still waiting for the broker: %s", error)
