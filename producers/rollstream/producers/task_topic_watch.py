"""Whether the `tasks` topic still is the one that a producer sends to: it may be deleted, or made anew, under it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from rollstream.schemas.errors import DataLossError, TransientError
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_watch import topic_ends

logger = logging.getLogger(__name__)


class TaskTopicWatch:
    """Compares what was acknowledged with how much the topic has grown since ``end_offsets``."""

    def __init__(self, kafka: KafkaSettings, run_id: str, end_offsets: Sequence[int]) -> None:
        self._kafka = kafka
        self._run_id = run_id
        self._end_offsets = end_offsets
        self.tasks_acknowledged = 0

    async def run(self, over: asyncio.Event, *, every_s: float) -> None:
        """Look now and then until ``over``; a broker that does not answer is no finding.

        Raises:
            DataLossError: the topic was deleted or made anew.
        """
        while not over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await over.wait()
                    return
            try:
                await self.check()
            except TransientError as error:
                logger.debug("the topic of the tasks cannot be looked at now: %s", error)

    async def check(self) -> None:
        """Look once.

        Raises:
            DataLossError: the topic was deleted or made anew.
            TransientError: the broker does not answer.
        """
        sent, topic, control = self.tasks_acknowledged, self._kafka.topic("tasks"), self._kafka.topic("control")
        found = await topic_ends(self._kafka, [topic, control])
        ends = found[topic]
        if found[control] is None:
            raise DataLossError(
                f"topic {control!r} was deleted: the trainer's limit would be heard no more; make it again with "
                "'rollstream topics apply' and choose another --run"
            )
        if ends is None:
            raise DataLossError(
                f"topic {topic!r} was deleted while run {self._run_id!r} was sent: its tasks are gone; make it again "
                "with 'rollstream topics apply' and choose another --run"
            )
        grown_by = sum(ends) - sum(self._end_offsets)
        if grown_by < sent:
            raise DataLossError(
                f"{sent} tasks of run {self._run_id!r} were sent, but topic {topic!r} has grown by {grown_by} records: "
                "it was made anew meanwhile and the tasks before are gone; choose another --run"
            )
