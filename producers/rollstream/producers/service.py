"""The producer: one run of prompts into `tasks`, at the pace of the trainer.

Duty: every good row of the plan becomes one group, whose tasks go to the partition of the group.

Invariants: ids, partition and content of a task are pure functions of (run, group, member), group indices are dense,
and a task that the topic holds or held is not sent again. What decides group *n* (data, columns, options) is recorded
in the run's `ProducerProgress` before its first task goes out; the same run under other choices is refused. All
producers together emit no more groups than the trainer allows (`emit_claims`).

Crash: nothing is kept here. The next start reads the run's part of `tasks` and sends what is missing. Two producers of
one run at the same time may send a task twice; workers know it by its id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from rollstream.producers.backfill import BackfillDesk
from rollstream.producers.emit_claims import CLAIM_GROUPS, claims_of_others
from rollstream.producers.pacing import PaceState, decide_pace
from rollstream.producers.rejects_file import RejectsFile
from rollstream.producers.run_plan import RunPlan, check_same_run, open_plan
from rollstream.producers.run_record import PUBLISH_DEADLINE_S, RunRecord
from rollstream.producers.settings import ProducerSettings
from rollstream.producers.task_building import Prompt, Rejection, build_group, group_task_ids
from rollstream.producers.task_log import TaskLog, check_log, read_task_log
from rollstream.producers.task_topic_watch import TaskTopicWatch
from rollstream.schemas.control import Pause, ProducerProgress, TrainerProgress
from rollstream.schemas.errors import RollstreamError, single_errors
from rollstream.schemas.ids import group_partition
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.control import ControlFollower
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

PACE_POLL_S = 0.5
"""A stop is noticed after this long while waiting for the trainer."""
_CHUNK_PROMPTS = 256


RunState = Literal["reading", "serving_backfill", "finished", "stopped"] | PaceState


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Where a run stands.

    Attributes:
        state: ``reading`` what is there, sending, waiting, all sent but for replacements that may be wanted, or over.
        groups_done: groups whose tasks are all in the topic.
        groups_total: groups of all epochs, bad rows found so far left out.
        tasks_sent: tasks this process has sent and got acknowledged.
        tasks_found: tasks of the run that were in the topic before.
        rows_rejected: bad rows, counted in every epoch.
        groups_allowed: how many groups the trainer allows by now; None: no limit.
        replacements_sent: tasks this process has sent in the place of others, on a trainer's wish.
    """

    state: RunState
    groups_done: int
    groups_total: int
    tasks_sent: int = 0
    tasks_found: int = 0
    rows_rejected: int = 0
    groups_allowed: int | None = None
    replacements_sent: int = 0


OnProgress = Callable[[RunProgress], None]


async def produce(
    settings: ProducerSettings, kafka: KafkaSettings, stop: asyncio.Event, on_progress: OnProgress | None = None
) -> RunProgress:
    """Emit the run; returns when everything is acknowledged or ``stop`` is set. Safe to repeat.

    Raises:
        SettingsError: source, options or rows are wrong, or the run was begun under others.
        TransientError: the broker did not acknowledge in time; repeat to go on.
        DataLossError: the topic was deleted or made anew meanwhile.
    """
    plan = await asyncio.to_thread(open_plan, settings)
    try:
        async with ControlFollower(kafka) as control, Publisher(kafka, profile="durable") as publisher:
            emission = _Emission(plan, kafka, control, publisher, stop, on_progress or _ignore)
            await emission.run()
            return emission.progress()
    except ExceptionGroup as errors:
        ours, others = errors.split(RollstreamError)
        if ours is None or others is not None:
            raise
        raise next(single_errors(ours)) from errors
    finally:
        plan.source.close()


class _Emission:
    def __init__(
        self,
        plan: RunPlan,
        kafka: KafkaSettings,
        control: ControlFollower,
        publisher: Publisher,
        stop: asyncio.Event,
        on_progress: OnProgress,
    ) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._kafka = kafka
        self._control = control
        self._publisher = publisher
        self._stop = stop
        self._on_progress = on_progress
        self._log = TaskLog([])
        self._record = RunRecord(publisher, control, plan.settings, plan.fingerprints())
        self._desk = BackfillDesk(plan, control, is_sent=self._is_in_topic, send=self._send, on_served=self._tell)
        self._slots = asyncio.Semaphore(plan.settings.max_groups_in_flight)
        self._over = asyncio.Event()
        self._state: RunState = "reading"
        self._groups_allowed: int | None = None
        self._groups_done = 0
        self._tasks_sent = 0
        self._watch = TaskTopicWatch(kafka, plan.settings.run_id, [])
        self._rows_rejected = 0

    def progress(self) -> RunProgress:
        return RunProgress(
            state=self._state,
            groups_done=self._groups_done,
            groups_total=self._plan.prompts_total - self._rows_rejected,
            tasks_sent=self._tasks_sent,
            tasks_found=self._log.tasks_found,
            rows_rejected=self._rows_rejected,
            groups_allowed=self._groups_allowed,
            replacements_sent=self._desk.replacements_sent,
        )

    async def run(self) -> None:
        await self._continue_run()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._record.keep(self._over))
            tasks.create_task(self._watch.run(self._over, every_s=self._settings.topic_check_s))
            tasks.create_task(self._desk.serve(self._over))
            try:
                is_complete = await self._emit_groups()
                await self._watch.check()
                await self._record.announce(is_finished=is_complete)
                if is_complete and self._desk.linger_s > 0:
                    self._set_state("serving_backfill")
                    await self._desk.linger(self._stop)
            finally:
                self._over.set()
        self._set_state("finished" if is_complete else "stopped")

    async def _continue_run(self) -> None:
        """Find out what is there, and record under which choices the run goes on."""
        self._on_progress(self.progress())
        run_id = self._settings.run_id
        recorded = self._record.before
        if recorded is not None:
            check_same_run(run_id, recorded.fingerprints, self._plan.fingerprints())
        self._log = await read_task_log(
            self._kafka, run_id, self._record.start_offsets, settled_groups=self._record.groups_before
        )
        await asyncio.to_thread(check_log, run_id, recorded, self._log, topic=self._kafka.topic("tasks"))
        self._watch = TaskTopicWatch(self._kafka, run_id, self._log.end_offsets)
        if recorded is None:
            self._record.start_offsets = self._log.end_offsets
        grows = recorded is not None and recorded.is_finished and self._plan.prompts_total > recorded.groups_emitted
        if recorded is None or grows:
            await self._record.announce()
        logger.info("run %s: %d tasks are already there", run_id, self._log.tasks_found)

    def _is_in_topic(self, trajectory_id: str) -> bool:
        return self._log.has(trajectory_id)

    async def _emit_groups(self) -> bool:
        """Send every group that is missing; False when stopped before the end."""
        group_index = 0
        prompts = self._plan.prompts()
        with RejectsFile(self._settings.rejects_path) as rejects:
            async with asyncio.TaskGroup() as sending:
                while chunk := await asyncio.to_thread(_take, prompts):
                    for place, built in enumerate(chunk):
                        if isinstance(built, Rejection):
                            self._rows_rejected += 1
                            rejects.write(built)
                            continue
                        in_hand = sum(isinstance(other, Prompt) for other in chunk[place : place + CLAIM_GROUPS])
                        if not await self._emit_group(group_index, built, sending, in_hand):
                            return False
                        group_index += 1
        return True

    async def _emit_group(self, group_index: int, prompt: Prompt, sending: asyncio.TaskGroup, in_hand: int) -> bool:
        if group_index < self._record.groups_before or all(
            map(self._log.has, group_task_ids(self._settings, group_index))
        ):
            self._finish_group(group_index)
            return True
        if not await self._may_emit(group_index, in_hand):
            return False
        await self._slots.acquire()
        sending.create_task(self._send_group(group_index, prompt))
        return True

    async def _may_emit(self, group_index: int, in_hand: int) -> bool:
        """Wait until the group may go out, the first of ``in_hand`` that are known to follow; False when stopped."""
        while not self._stop.is_set():
            if not self._record.is_read_back():
                await self._control.wait_for_change(timeout_s=PACE_POLL_S)
                continue
            trainer, pause = self._control.latest(TrainerProgress), self._control.latest(Pause)
            pace = decide_pace(
                group_index,
                pacing=self._settings.pacing,
                trainer=trainer[0] if trainer else None,
                pause=pause[0] if pause else None,
                claim=self._record.claim,
                others=claims_of_others(self._control.placed(ProducerProgress), self._settings.run_id),
            )
            self._groups_allowed = pace.groups_allowed
            if pace.needs_claim:
                await self._record.claim_places(group_index, group_index + in_hand)
                continue
            self._set_state(pace.state)
            if pace.state == "emitting":
                return True
            await self._control.wait_for_change(timeout_s=PACE_POLL_S)
        return False

    async def _send_group(self, group_index: int, prompt: Prompt) -> None:
        try:
            tasks = build_group(prompt, self._settings, group_index, data_source=self._plan.data_source)
            missing = [task for task in tasks if not self._log.has(task.trajectory_id)]
            async with asyncio.TaskGroup() as sending:
                for task in missing:
                    sending.create_task(self._send(task))
            self._tasks_sent += len(missing)
            self._finish_group(group_index)
        finally:
            self._slots.release()

    async def _send(self, task: RolloutTask) -> None:
        partition = group_partition(task.group_id, self._log.partitions)
        await self._publisher.publish(task, key=task.group_id, partition=partition, deadline_s=PUBLISH_DEADLINE_S)
        self._watch.tasks_acknowledged += 1

    def _finish_group(self, group_index: int) -> None:
        self._record.acknowledge(group_index)
        self._groups_done += 1
        self._tell()

    def _tell(self) -> None:
        self._on_progress(self.progress())

    def _set_state(self, state: RunState) -> None:
        if state != self._state:
            self._state = state
            self._on_progress(self.progress())


def _take(prompts: Iterator[Prompt | Rejection]) -> list[Prompt | Rejection]:
    return list(islice(prompts, _CHUNK_PROMPTS))


def _ignore(_: RunProgress) -> None:
    return None
