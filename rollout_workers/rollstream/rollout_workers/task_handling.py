"""One record of `tasks`, from its bytes to its acknowledged trajectory. The record boundary of the rollout worker.

Invariant: when ``handle`` returns, the record needs no more work: its trajectory is acknowledged, or its bytes are in
the dead letters. Each step may be repeated: ids make the repetition visible to readers.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from rollstream.rollout_workers import metrics
from rollstream.rollout_workers.attempts import TaskRunner
from rollstream.schemas.errors import DataError, InvalidMessageError, TransientError
from rollstream.schemas.ids import group_partition
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.publisher import Publisher, RecordPlace
from rollstream.transport.records import Record, decode_record
from rollstream.transport.telemetry import log_context

logger = logging.getLogger(__name__)


@dataclass
class HandlingStats:
    """Counted since the worker started."""

    endings: Counter[str] = field(default_factory=Counter[str])
    dead_letters: int = 0
    sampled_tokens: int = 0


@dataclass(frozen=True)
class TaskHandler:
    """Shared by all records of a worker."""

    runner: TaskRunner
    publisher: Publisher
    dead_letters: DeadLetterOffice
    writer: str
    """Nonce of this process in the journal."""
    trajectory_partitions: int
    stats: HandlingStats = field(default_factory=HandlingStats)

    async def handle(self, record: Record) -> None:
        """Do everything the record needs."""
        try:
            task = decode_record(record, RolloutTask)
        except InvalidMessageError as error:
            await self._bury(record, error)
        else:
            with (
                log_context(trajectory_id=task.trajectory_id, group_id=task.group_id),
                metrics.RUNNING.track_inprogress(),
            ):
                await self._run(record, task)

    async def _run(self, record: Record, task: RolloutTask) -> None:
        trajectory = await self.runner.run(task, lambda attempt: self._start(record, task, attempt))
        await self._publish(trajectory)
        if trajectory.error is not None:
            await self._bury(record, DataError(f"{trajectory.error.type}: {trajectory.error.message}"))

    async def _start(self, record: Record, task: RolloutTask, attempt: int) -> int:
        start = JournalRecord(
            kind="start",
            trajectory_id=task.trajectory_id,
            attempt=attempt,
            key=f"{attempt}/0/{self.writer}",
            writer=self.writer,
            task_offset=record.offset,
        )
        place = await self._until_acknowledged(start, task.trajectory_id, record.partition)
        return place.offset

    async def _publish(self, trajectory: Trajectory) -> None:
        partition = group_partition(trajectory.group_id, self.trajectory_partitions)
        await self._until_acknowledged(trajectory, trajectory.group_id, partition)
        self.stats.endings[trajectory.status] += 1
        sampled_tokens = int(trajectory.metrics.get("sampled_tokens", 0))
        self.stats.sampled_tokens += sampled_tokens
        metrics.TRAJECTORIES.labels(trajectory.status, trajectory.stop_reason).inc()
        metrics.SAMPLED_TOKENS.inc(sampled_tokens)
        metrics.OBSERVED_TOKENS.inc(trajectory.metrics.get("observed_tokens", 0))
        metrics.EPISODE_SECONDS.observe(max(0.0, trajectory.timing.finished_at - trajectory.timing.started_at))

    async def _until_acknowledged(self, message: Message, key: str, partition: int) -> RecordPlace:
        """A broker that is away holds the episode up; it does not spend its budget."""
        while True:
            try:
                return await self.publisher.publish(message, key=key, partition=partition)
            except TransientError as error:
                logger.warning("still waiting for the broker: %s", error)

    async def _bury(self, record: Record, error: Exception) -> None:
        self.stats.dead_letters += 1
        logger.error("task %s/%d/%d: %s", record.topic, record.partition, record.offset, error)
        await self.dead_letters.bury(record, error)
