"""Tool calls out of their topic, and the claim that lets a harmful one be run by one worker only.

A claim is a commit past the call before it runs. It counts only if nobody else's commit is past the call already, and
if no rebalance lies between that look and the commit: the broker refuses commits of members whose time is over.

Crash after a claim: the call is delivered to nobody any more. Frozen and woken: the claim sees that others went on.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata

from rollstream.transport.intake import GroupIntake
from rollstream.transport.offsets import OffsetTracker

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.05


class CallIntake(GroupIntake):
    """A group intake whose records can be claimed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._something_changed = asyncio.Event()

    async def claim(self, partition: TopicPartition, offset: int, *, deadline_s: float) -> bool:
        """Commit past a record before it is worked on, so that it is never delivered again: at most once.

        Waits for earlier records of the partition that are still running. False: not in time, the partition has left,
        or another member may have the record: then it must not be worked on.
        """
        tracker = self._trackers.get(partition)
        try:
            async with asyncio.timeout(deadline_s):
                while tracker is not None and self._trackers.get(partition) is tracker:
                    if tracker.committable != offset:
                        self._something_changed.clear()
                        await self._something_changed.wait()
                    elif (is_ours := await self._try_to_claim(partition, offset, tracker)) is not None:
                        return is_ours
                    else:
                        await asyncio.sleep(RETRY_PAUSE_S)
        except TimeoutError:
            logger.warning("no claim on %s offset %d within %g s", partition, offset, deadline_s)
        return False

    def finished(self, partition: TopicPartition, offset: int) -> None:
        """See ``GroupIntake``."""
        super().finished(partition, offset)
        self._something_changed.set()

    def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """See ``GroupIntake``."""
        super().assigned(partitions)
        self._something_changed.set()

    async def _try_to_claim(self, partition: TopicPartition, offset: int, tracker: OffsetTracker) -> bool | None:
        """Whether the record is ours; None: try again."""
        async with self._commit_lock:
            settled = self._times_assigned
            try:
                if await self._committed_by_anybody(partition) > offset:
                    logger.warning("offset %d of %s is another member's", offset, partition)
                    return False
                if not self._gate_is_open or settled != self._times_assigned:
                    return None
                await self._started.commit({partition: OffsetAndMetadata(offset + 1, "")})
            except KafkaError as error:
                logger.warning("claim on %s offset %d failed, will be repeated: %r", partition, offset, error)
                return None
            if settled != self._times_assigned or self._trackers.get(partition) is not tracker:
                return False
            self._committed[partition] = offset + 1
        self.finished(partition, offset)
        return True

    async def _committed_by_anybody(self, partition: TopicPartition) -> int:
        return await self._started.committed(partition) or 0
