"""The slots of a rollout worker: which records run now, and what happens to them on loss and on drain.

Invariants: at most ``max_running`` records run, those that are *parked* not counted (they wait for weights and do
nothing meanwhile; at most as many again, which run on when their weights are there); none is taken on while no slot is
free or after the stop signal; a record of a partition that left is cancelled at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from aiokafka import TopicPartition

from rollstream.transport.records import Record

logger = logging.getLogger(__name__)

POLL_S = 0.5


class RecordSource(Protocol):
    """Where records come from: a ``GroupIntake``."""

    async def poll(self, *, max_records: int, timeout_s: float) -> Sequence[Record]:
        """Records to work on, at most ``max_records``; empty after ``timeout_s``."""
        ...


class EpisodePool:
    """Runs ``handle`` for each record, beside one another. What ``handle`` raises ends the pool.

    ``handle`` says whether the record is finished; one that is not is left to the partition's next owner. ``parked``
    says how many of the records do nothing but wait.
    """

    def __init__(
        self,
        handle: Callable[[Record], Awaitable[bool]],
        *,
        max_running: int,
        parked: Callable[[], int] = lambda: 0,
    ) -> None:
        self._handle = handle
        self._max_running = max_running
        self._parked = parked
        self._running: dict[asyncio.Task[None], TopicPartition] = {}
        self.finished = 0

    @property
    def running(self) -> int:
        """Records in work."""
        return len(self._running)

    def abandon(self, partitions: frozenset[TopicPartition]) -> None:
        """Cancel what runs for these partitions: another worker has them now."""
        lost = [task for task, partition in self._running.items() if partition in partitions]
        for task in lost:
            task.cancel()
        if lost:
            logger.info("abandoned %d episodes of %d partitions that left", len(lost), len(partitions))

    async def run(self, source: RecordSource, stop: asyncio.Event, *, drain_s: float) -> None:
        """Take records on until ``stop``; then let what runs come to a rest within ``drain_s`` and cancel the rest."""
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(stop.wait())
            while not stop.is_set():
                free = self._max_running - self.running + min(self._parked(), self._max_running)
                if free <= 0:
                    await self._one_finished_or(stopping)
                    continue
                for record in await source.poll(max_records=free, timeout_s=POLL_S):
                    self._start(group, record)
            await self._drain(drain_s)

    def _start(self, group: asyncio.TaskGroup, record: Record) -> None:
        task = group.create_task(self._run_one(record))
        self._running[task] = TopicPartition(record.topic, record.partition)
        task.add_done_callback(self._forget)

    async def _run_one(self, record: Record) -> None:
        self.finished += await self._handle(record)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)

    async def _one_finished_or(self, stopping: asyncio.Task[bool]) -> None:
        await asyncio.wait([stopping, *self._running], return_when=asyncio.FIRST_COMPLETED, timeout=POLL_S)

    async def _drain(self, drain_s: float) -> None:
        if self._running:
            logger.info("draining: %d episodes may finish their turns within %.0f s", self.running, drain_s)
            await asyncio.wait(self._running, timeout=drain_s)
        if self._running:
            logger.warning("drain limit reached: %d episodes are left in the middle of a turn", self.running)
        for task in list(self._running):
            task.cancel()
