"""A group intake that can make sure a record is never delivered again before its work begins."""

from __future__ import annotations

import asyncio

from aiokafka import TopicPartition

from rollstream.transport.intake import GroupIntake

CHECK_INTERVAL_S = 0.05


class CallIntake(GroupIntake):
    """Adds the commit that a tool needs which must not run twice."""

    async def commit_through(self, partition: TopicPartition, offset: int, *, deadline_s: float) -> bool:
        """Finish the record and commit past it; waits for earlier records of the partition that are still running.

        Returns False if that is not possible in time or the partition is gone: then the record must not be worked on.
        """
        self.finished(partition, offset)
        try:
            async with asyncio.timeout(deadline_s):
                while partition in self._trackers:
                    if self._committed.get(partition, -1) > offset:
                        return True
                    committable = self._trackers[partition].committable
                    if committable is not None and committable > offset:
                        await self._commit_within(deadline_s)
                    else:
                        await asyncio.sleep(CHECK_INTERVAL_S)
        except TimeoutError:
            return False
        return False
