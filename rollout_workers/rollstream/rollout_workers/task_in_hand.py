"""One task in the hands of this worker: the journal says what comes next, and this does it.

Duty: start, run, fail, end, publish, done: each step for real only if the journal does not hold it.

Invariants: a start is journaled before the task's body is touched; how the task ends is journaled, with the whole
trajectory, before anybody hears of it; `done` is journaled after the trajectory is acknowledged, and only then is the
record finished. Every step may be repeated, here or elsewhere: the first record with a key counts.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from rollstream.rollout_workers import metrics
from rollstream.rollout_workers.budgets import Abandon, Begin, Finished, GiveUp, Publish, failure_kind, next_step
from rollstream.rollout_workers.effects import AttemptIdentity, EffectLog, WorkerLeavingError
from rollstream.rollout_workers.episode import Episode
from rollstream.rollout_workers.terminal_records import UNPUBLISHED, read_trajectory
from rollstream.rollout_workers.trajectory_assembly import Ending, EpisodeTimes, Failures, assemble, failed
from rollstream.schemas.codec import EncodedRecord
from rollstream.schemas.errors import EngineDeadError, InvalidMessageError
from rollstream.schemas.journal import AttemptFailure, JournalKind, JournalRecord, StartFacts, TerminalRecord
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.acknowledgement import until_acknowledged
from rollstream.transport.dead_letters import Cause
from rollstream.transport.journal.journal import Journal
from rollstream.transport.journal.task_state import AttemptOverError, PartitionLostError, StartKey, TaskState
from rollstream.transport.records import Record, decode_record, record_headers

if TYPE_CHECKING:
    from rollstream.rollout_workers.task_handling import TaskHandler

logger = logging.getLogger(__name__)

ID_HEADER = "trajectory_id"
MAX_ID_CHARS = 64
MAX_MESSAGE_CHARS = 2000


class TaskInHand:
    """Args: the worker's handler, the record, the task's id in the journal, and the journal of its partition."""

    def __init__(self, handler: TaskHandler, record: Record, id_: str, journal: Journal) -> None:
        self._handler = handler
        self._record = record
        self._id = id_
        self._journal = journal

    async def take_next_step(self) -> bool:
        """Do what the journal says is next; whether nothing is left to do.

        Raises:
            AttemptOverError: another worker was faster; the journal says how it goes on.
            PartitionLostError: the partition has left this worker.
            WorkerLeavingError: this worker begins nothing more.
            EngineDeadError: no episode of this worker can go on.
        """
        match next_step(self._journal.state(self._id), self._handler.budgets):
            case Finished():
                return True
            case Publish(end):
                await self._publish(end)
            case Abandon(failure):
                await self._abandon(failure)
            case GiveUp(failure, attempt, is_suspect):
                async with self._handler.gate.passed(is_suspect=is_suspect), self._started(attempt) as identity:
                    await self._give_up(identity, failure)
            case Begin(attempt, is_suspect, pause_s):
                await self._handler.pause(pause_s)
                async with self._handler.gate.passed(is_suspect=is_suspect) as clear:
                    if self._handler.is_leaving():
                        raise WorkerLeavingError(f"trajectory {self._id!r} is not begun here any more")
                    async with self._started(attempt) as identity:
                        log = EffectLog(
                            self._journal,
                            self._id,
                            identity,
                            writer=self._handler.writer,
                            is_leaving=self._handler.is_leaving,
                            on_progress=clear,
                        )
                        await self._attempt(identity, log)
        return False

    @asynccontextmanager
    async def _started(self, attempt: int) -> AsyncGenerator[AttemptIdentity]:
        """The start is journaled, and given back if we leave in peace. Not if the engine dies: the task may be why."""
        state = self._journal.state(self._id)
        n = state.last_start + 1 if state is not None else 1
        facts = StartFacts(started_at=self._handler.clock())
        start = JournalRecord(
            kind="start",
            trajectory_id=self._id,
            attempt=attempt,
            key=str(StartKey(attempt, n, self._handler.writer)),
            writer=self._handler.writer,
            task_offset=self._record.offset,
            payload=msgspec.msgpack.encode(facts),
        )
        leaves_in_peace = True
        try:
            state = await self._journal.append(start)
            self._handler.stats.resumed += bool(state.effects)
            yield AttemptIdentity(attempt, state.births[attempt])
            leaves_in_peace = False
        except (AttemptOverError, EngineDeadError):
            leaves_in_peace = False
            raise
        finally:
            if leaves_in_peace:
                self._handler.handovers.release(self._record.partition, start)

    async def _attempt(self, identity: AttemptIdentity, log: EffectLog) -> None:
        """Run the agent, journal what came of it, and give its tool sessions back when that is decided for good."""
        try:
            task = read_task(self._record, self._id)
        except InvalidMessageError as error:
            await self._leave_unread(identity, error)
            return
        episode: Episode | None = None
        try:
            async with self._handler.policies.serving(task.policy):
                episode = self._handler.runner.begin(task, identity, log)
                ending = await self._handler.runner.run(episode, log)
            end = await self._handler.terminal_records.of(self._assemble(task, identity, ending, episode))
        except (AttemptOverError, PartitionLostError, WorkerLeavingError, EngineDeadError):
            raise
        except Exception as error:
            await self._fail(identity, log, error)
        else:
            await self._append("end", identity, payload=end)
        if episode is not None:
            episode.end_sessions()

    async def _fail(self, identity: AttemptIdentity, log: EffectLog, error: Exception) -> None:
        kind = failure_kind(error)
        metrics.FAILED_ATTEMPTS.labels(kind).inc()
        logger.warning("attempt %d failed (%s): %r", identity.attempt, kind, error)
        cause = Cause.of(error)
        failure = AttemptFailure(kind=kind, type=cause.type, message=cause.text[:MAX_MESSAGE_CHARS], stack=cause.stack)
        # In the slot of the effect that failed: another worker's success there is worth more than our failure.
        key = log.failed_path if kind == "infrastructure" else ""
        await self._append("attempt_end", identity, key=key, payload=failure)

    async def _give_up(self, identity: AttemptIdentity, failure: AttemptFailure) -> None:
        try:
            task = read_task(self._record, self._id)
        except InvalidMessageError as error:
            await self._leave_unread(identity, error)
            return
        trajectory = self._assemble(task, identity, failed(failure), None)
        await self._append("end", identity, payload=await self._handler.terminal_records.of(trajectory))

    async def _leave_unread(self, identity: AttemptIdentity, error: InvalidMessageError) -> None:
        await self._bury(Cause.of(error))
        await self._append("end", identity, payload=UNPUBLISHED)

    async def _abandon(self, failure: AttemptFailure) -> None:
        await self._bury(Cause(failure.type, failure.message, failure.stack))
        await self._append("end", self._begun, payload=UNPUBLISHED)

    async def _publish(self, end: TerminalRecord) -> None:
        if end.value is not None:
            record, topic = EncodedRecord(end.value, end.headers), self._handler.terminal_records.topic
            await until_acknowledged(
                lambda: self._handler.publisher.publish(record, topic=topic, key=end.key, partition=end.partition)
            )
            trajectory = read_trajectory(end)
            if trajectory.error is not None:
                last = self._state.failure
                stack = last.stack if last is not None and last.type == trajectory.error.type else ""
                await self._bury(Cause(trajectory.error.type, trajectory.error.message, stack))
            self._count(trajectory)
        await self._append("done", self._begun)

    async def _append(
        self, kind: JournalKind, identity: AttemptIdentity, *, key: str = "", payload: msgspec.Struct | None = None
    ) -> None:
        await self._journal.append(
            JournalRecord(
                kind=kind,
                trajectory_id=self._id,
                attempt=identity.attempt,
                key=key,
                writer=self._handler.writer,
                birth=identity.birth,
                payload=b"" if payload is None else msgspec.msgpack.encode(payload),
            )
        )

    async def _bury(self, cause: Cause) -> None:
        record, state = self._record, self._state
        self._handler.stats.dead_letters += 1
        logger.error("task %s/%d/%d: %s: %s", record.topic, record.partition, record.offset, cause.type, cause.text)
        await self._handler.dead_letters.bury(record, cause, attempts=max(1, state.infra + state.data))

    @property
    def _state(self) -> TaskState:
        state = self._journal.state(self._id)
        if state is None:
            raise AttemptOverError(f"nothing is known of trajectory {self._id!r} any more")
        return state

    @property
    def _begun(self) -> AttemptIdentity:
        """The present attempt, which has begun."""
        return AttemptIdentity(self._state.attempt, self._state.births[self._state.attempt])

    def _assemble(
        self, task: RolloutTask, identity: AttemptIdentity, ending: Ending, episode: Episode | None
    ) -> Trajectory:
        state = self._state
        times = EpisodeTimes(state.started_at, self._handler.clock())
        return assemble(task, self._handler.facts, identity, Failures(state.infra, state.data), ending, times, episode)

    def _count(self, trajectory: Trajectory) -> None:
        stats = self._handler.stats
        stats.endings[trajectory.status] += 1
        sampled_tokens = int(trajectory.metrics.get("sampled_tokens", 0))
        stats.sampled_tokens += sampled_tokens
        metrics.TRAJECTORIES.labels(trajectory.status, trajectory.stop_reason).inc()
        metrics.SAMPLED_TOKENS.inc(sampled_tokens)
        metrics.OBSERVED_TOKENS.inc(trajectory.metrics.get("observed_tokens", 0))
        metrics.EPISODE_SECONDS.observe(max(0.0, trajectory.timing.finished_at - trajectory.timing.started_at))


def journal_id(record: Record) -> str:
    """What the journal calls the task of a record, without a look at its body."""
    id_ = dict(record_headers(record)).get(ID_HEADER, b"").decode(errors="replace")
    if 0 < len(id_) <= MAX_ID_CHARS and id_.isalnum():
        return id_
    return f"tasks/{record.partition}/{record.offset}"


def read_task(record: Record, id_: str) -> RolloutTask:
    """The task of a record.

    Raises:
        InvalidMessageError: it is none, or its header names another.
    """
    task = decode_record(record, RolloutTask)
    if not id_.startswith("tasks/") and task.trajectory_id != id_:
        raise InvalidMessageError(
            f"header {ID_HEADER} is {id_!r}, the body says {task.trajectory_id!r}: write both alike, or no header",
            field=ID_HEADER,
        )
    return task
