"""The scorer: `trajectories` in, `scored-trajectories` out.

Duty: every trajectory goes out once at least, under the same id and key, in the partition of the same number: with its
scores, without a reward where a scorer gave up, or untouched where there is nothing to score.

Invariants: a record is finished when what came of it is acknowledged, and offsets are committed in order of completion;
nothing that infrastructure did becomes a reward. Copies of one id may differ where a judge is not deterministic: the
first record in the topic counts for every reader.

Crash: what was not acknowledged is delivered to the next owner and scored again. Rebalance: what waits for its group is
dropped, as the next owner has it; what is being scored is finished, and then a copy. Drain: intake stops, running
scorings may finish within ``drain_s``.

Full: no more is taken on; a group that waits for members while nothing else is left to do is scored as it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Literal

from aiokafka import TopicPartition

from rollstream.schemas.codec import EncodedRecord
from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.errors import DataError, InvalidMessageError, single_errors
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers import metrics
from rollstream.scorers.combining import without_extras
from rollstream.scorers.group_collection import Bundle, GroupCollector, Held
from rollstream.scorers.panel import ScoringPanel, opened_panel
from rollstream.scorers.settings import ScorerSettings
from rollstream.transport.acknowledgement import until_acknowledged
from rollstream.transport.clients import require_topics
from rollstream.transport.dead_letters_or_log import DeadLettersOrLog
from rollstream.transport.heartbeat import Heartbeat
from rollstream.transport.intake import GroupIntake
from rollstream.transport.metrics import served_metrics
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record, record_headers, record_place
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_watch import watched_topics
from rollstream.transport.topics import SCORED

logger = logging.getLogger(__name__)

GROUP = "scorers"
POLL_TIMEOUT_S = 0.5
RECORDS_PER_POLL = 64
TRACE_HEADERS = frozenset({"traceparent", "tracestate"})
"""The publisher adds its own."""


async def run_scorer(settings: ScorerSettings, kafka: KafkaSettings, stop: asyncio.Event) -> None:
    """Score until ``stop`` is set and what runs has finished or ``drain_s`` is over.

    Raises:
        SettingsError: a scorer or a topic is not as it must be.
        TransientError: no broker.
        DataLossError: a topic was deleted or made anew meanwhile.
    """
    try:
        await _serve(settings, kafka, stop)
    except ExceptionGroup as failures:
        raise next(iter(single_errors(failures))) from failures


async def _serve(settings: ScorerSettings, kafka: KafkaSettings, stop: asyncio.Event) -> None:
    source, target = kafka.topic("trajectories"), kafka.topic(SCORED)
    async with AsyncExitStack() as stack:
        if settings.metrics_port is not None:
            stack.enter_context(served_metrics(settings.metrics_port))
        panel = await stack.enter_async_context(opened_panel(settings))
        await require_topics(kafka, target)
        publisher = await stack.enter_async_context(Publisher(kafka, profile="durable"))
        dead_letters = DeadLettersOrLog(kafka, role="scorer", worker_id=settings.worker_id)
        await stack.enter_async_context(dead_letters)
        worker = ScorerWorker(settings, target, panel, publisher, dead_letters)
        intake = GroupIntake(
            kafka,
            [source],
            group_id=kafka.group(GROUP),
            instance_id=settings.instance_id,
            on_lost=worker.forget,
        )
        await stack.enter_async_context(intake)
        async with watched_topics(kafka, [source, target, kafka.topic("control")]):
            await worker.run(intake, stop)


class ScorerWorker:
    """One running scorer."""

    def __init__(
        self,
        settings: ScorerSettings,
        target: str,
        panel: ScoringPanel,
        publisher: Publisher,
        dead_letters: DeadLettersOrLog,
    ) -> None:
        self._settings = settings
        self._target = target
        self._panel = panel
        self._publisher = publisher
        self._heartbeat = Heartbeat(publisher)
        self._dead_letters = dead_letters
        self._groups: GroupCollector[Record] = GroupCollector(deadline_s=settings.group_deadline_s)
        self._running: set[asyncio.Task[None]] = set()
        self._held = 0
        self._held_bytes = 0
        self._changed = asyncio.Event()
        self._sent: Counter[str] = Counter()
        self._state: Literal["running", "draining", "stopped"] = "running"

    def forget(self, partitions: frozenset[TopicPartition]) -> None:
        """These partitions are somebody else's now, and with them the members that wait for their groups."""
        lost = self._groups.forget(lambda record: TopicPartition(record.topic, record.partition) in partitions)
        self._let_go(held.place for held in lost)

    async def run(self, intake: GroupIntake, stop: asyncio.Event) -> None:
        """Receive, score, send on, drain."""
        await self._heartbeat.say(self._status())
        try:
            await self._work(intake, stop)
        except ExceptionGroup as failures:
            raise next(single_errors(failures)) from failures
        self._state = "stopped"
        await self._heartbeat.say(self._status())

    async def _work(self, intake: GroupIntake, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(intake.run()),
                group.create_task(self._heartbeat.beat(self._status)),
            ]
            while not stop.is_set():
                await self._receive(intake, group)
            self._state = "draining"
            await self._drain()
            for task in background:
                task.cancel()

    async def _receive(self, intake: GroupIntake, group: asyncio.TaskGroup) -> None:
        for bundle in self._groups.overdue(time.monotonic()):
            self._start(bundle, intake, group)
        room = self._room()
        if not room and not self._running and (bundle := self._groups.oldest()) is not None:
            logger.warning(
                "a group of %d is scored with %d members: %d trajectories wait, there is room for no more (raise "
                "scorer.max_held_trajectories or max_held_bytes)",
                bundle.members[0].trajectory.group_size,
                len(bundle.members),
                self._held,
            )
            self._start(bundle, intake, group)
        if not room:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    await self._changed.wait()
            return
        for record in await intake.poll(max_records=min(room, RECORDS_PER_POLL), timeout_s=POLL_TIMEOUT_S):
            self._take_on([record])
            try:
                trajectory = decode_record(record, Trajectory)
            except InvalidMessageError as error:
                self._spawn(group, self._bury(record, error, intake))
                continue
            self._place(Held(trajectory, record), intake, group)
        await asyncio.sleep(0)

    def _place(self, held: Held[Record], intake: GroupIntake, group: asyncio.TaskGroup) -> None:
        trajectory = held.trajectory
        is_passed = not trajectory.is_train and not self._settings.score_evaluations
        if is_passed or not self._panel.needs_groups:
            bundle = Bundle((held,))
        else:
            bundle = self._groups.add(held, time.monotonic())
        if bundle is not None:
            self._start(bundle, intake, group, is_passed=is_passed)

    def _room(self) -> int:
        if self._held_bytes >= self._settings.max_held_bytes:
            return 0
        return max(0, self._settings.max_held_trajectories - self._held)

    def _start(
        self, bundle: Bundle[Record], intake: GroupIntake, group: asyncio.TaskGroup, *, is_passed: bool = False
    ) -> None:
        self._spawn(group, self._handle(bundle, intake, is_passed=is_passed))

    def _spawn(self, group: asyncio.TaskGroup, work: Coroutine[None, None, None]) -> None:
        task = group.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _handle(self, bundle: Bundle[Record], intake: GroupIntake, *, is_passed: bool) -> None:
        """Score a bundle and send all of it on; then, and only then, its records are finished."""
        members = [held.trajectory for held in bundle.members]
        try:
            results = members if is_passed else await self._scored(members, is_complete=bundle.is_complete)
            for held, result in zip(bundle.members, results, strict=True):
                await self._send(held, result)
            # Together: a group that came back without some of its members would be scored as another group.
            self._finish([held.place for held in (*bundle.members, *bundle.copies)], intake)
        finally:
            self._changed.set()

    async def _scored(self, members: Sequence[Trajectory], *, is_complete: bool) -> Sequence[Trajectory]:
        """Whatever is wrong with one bundle stays with it."""
        try:
            return await self._panel.score(members, is_complete=is_complete)
        except DataError as error:
            logger.warning("trajectory %s goes on without scores: %s", members[0].trajectory_id, error)
            return [without_extras(each, str(error)) if each.samples else each for each in members]

    async def _send(self, held: Held[Record], result: Trajectory) -> None:
        """Until the broker has it. What was not touched goes out as the same bytes."""
        record = held.place
        is_untouched = result is held.trajectory
        message = _same_bytes(record) if is_untouched else result
        try:
            await self._publish(message, record)
        except InvalidMessageError as error:
            logger.warning("%s goes on without scores: %s", record_place(record), error)
            try:
                await self._publish(without_extras(held.trajectory, str(error)), record)
            except InvalidMessageError as smaller:
                await self._dead_letters.bury(record, smaller)
        outcome = "passed" if is_untouched else "unscored" if result.reward is None else "scored"
        metrics.TRAJECTORIES.labels(outcome).inc()
        self._sent[outcome] += 1

    async def _publish(self, message: Trajectory | EncodedRecord, record: Record) -> None:
        await until_acknowledged(
            lambda: self._publisher.publish(message, key=record.key, topic=self._target, partition=record.partition)
        )

    async def _bury(self, record: Record, error: InvalidMessageError, intake: GroupIntake) -> None:
        logger.warning("%s goes to the dead letters: %s", record_place(record), error)
        await self._dead_letters.bury(record, error)
        self._finish([record], intake)
        self._changed.set()

    def _take_on(self, records: Iterable[Record]) -> None:
        for record in records:
            self._held += 1
            self._held_bytes += len(record.value or b"")
        metrics.HELD.set(self._held)

    def _finish(self, records: Iterable[Record], intake: GroupIntake) -> None:
        for record in records:
            intake.finished(TopicPartition(record.topic, record.partition), record.offset)
            self._let_go([record])

    def _let_go(self, records: Iterable[Record]) -> None:
        for record in records:
            self._held -= 1
            self._held_bytes -= len(record.value or b"")
        metrics.HELD.set(self._held)

    async def _drain(self) -> None:
        if self._running:
            logger.info("waiting up to %g s for %d bundles", self._settings.drain_s, len(self._running))
            _, late = await asyncio.wait(self._running, timeout=self._settings.drain_s)
            for task in late:
                task.cancel()

    def _status(self) -> WorkerStatus:
        return WorkerStatus(
            worker_id=self._settings.worker_id,
            role="scorer",
            state=self._state,
            running=self._panel.running,
            finished=self._sent.total(),
            updated_at=time.time(),
            stats={
                "held": float(self._held),
                "groups_waiting": float(len(self._groups)),
                **{f"trajectories_{outcome}": float(count) for outcome, count in self._sent.items()},
            },
        )


def _same_bytes(record: Record) -> EncodedRecord:
    headers = [(name, data) for name, data in record_headers(record) if name not in TRACE_HEADERS]
    return EncodedRecord(record.value or b"", headers)
