"""Emits the tasks of one run and takes their trajectories as they come. Repeating it goes on where it stopped.

Duty: every task of the run exactly once in `tasks`, its trajectory exactly once in hand.
Invariants: reading begins at or before the place where the run's first trajectory can lie, so that a run which was
killed is found whole; the first record with an id counts.
Crash: nothing is kept here. The next call finds the run's tasks and trajectories in the log.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from rollstream.producers.service import RunProgress, produce
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.errors import InvalidMessageError, RollstreamError, TransientError, single_errors
from rollstream.schemas.ids import group_id
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.control import ControlFollower
from rollstream.transport.records import Record, decode_record, record_place
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

logger = logging.getLogger(__name__)

FETCH_WAIT_S = 0.5
RETRY_S = 1.0
PRODUCER_LEAVES_S = 30.0
"""After the time is up, for sends under way."""
CLOCKS_APART_S = 600.0
"""Records carry the times of their writers' clocks: a run's trajectories are looked for from this much earlier on."""
FIRST_TASK_S = 60.0
_LISTED = 20

See = Callable[[Trajectory], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """How far a run is: what its producer says, and episodes that are there of those that are wanted by now."""

    producer: RunProgress
    arrived: int
    wanted: int


@dataclass(frozen=True, slots=True)
class RolloutOutcome:
    """What came of a run.

    Attributes:
        wanted: episodes of the run.
        missing: those without a trajectory at the end.
        missing_places: ``group/member`` of the first of them.
        is_stopped: somebody asked to stop before the end.
    """

    run_id: str
    wanted: int
    missing: int
    missing_places: list[str]
    is_stopped: bool


OnProgress = Callable[[RolloutProgress], None]


async def roll_out(
    settings: ProducerSettings,
    kafka: KafkaSettings,
    *,
    prompts: int,
    topic: str,
    timeout_s: float,
    stop: asyncio.Event,
    see: See,
    on_progress: OnProgress,
) -> RolloutOutcome:
    """Emit a run of evaluation tasks and hand each of its trajectories once to ``see``.

    Ends when all are there, after ``timeout_s``, or when ``stop`` is set; what came of it is in the outcome.

    Args:
        settings: of the producer.
        kafka: where the topics are.
        prompts: rows that the run may become groups of.
        topic: short name of the one that trajectories are taken from.
        timeout_s: for emitting, waiting and ``see`` together.
        stop: ends it early.
        see: called once for each trajectory, one after another.
        on_progress: called at every change.

    Raises:
        SettingsError: source, options or rows are wrong, or the run was begun under others.
        TransientError: the broker did not acknowledge a task.
        DataLossError: retention has deleted trajectories that were not read yet.
    """
    rollout = _Rollout(settings, kafka, prompts, topic, stop, see, on_progress)
    try:
        return await rollout.run(timeout_s)
    except ExceptionGroup as errors:
        ours, others = errors.split(RollstreamError)
        if ours is None or others is not None:
            raise
        raise next(single_errors(ours)) from errors


class _Rollout:
    def __init__(
        self,
        settings: ProducerSettings,
        kafka: KafkaSettings,
        prompts: int,
        topic: str,
        stop: asyncio.Event,
        see: See,
        on_progress: OnProgress,
    ) -> None:
        self._settings = settings
        self._kafka = kafka
        self._topic = topic
        self._stop = stop
        self._see = see
        self._on_progress = on_progress
        self._keys = {group_id(settings.run_id, index).encode() for index in range(prompts)}
        self._seen: set[tuple[int, int]] = set()
        self._progress: RunProgress | None = None
        self._stop_producing = asyncio.Event()

    async def run(self, timeout_s: float) -> RolloutOutcome:
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        async with TrajectoryLog(self._kafka, topic=self._topic) as log:
            await log.seek(await _first_places(log, self._kafka, self._settings.run_id))
            async with asyncio.TaskGroup() as tasks:
                producing = tasks.create_task(
                    produce(self._settings, self._kafka, self._stop_producing, self._take_progress)
                )
                try:
                    await self._collect(log, producing, deadline_s)
                finally:
                    # Whatever ends the collecting: a producer that is cancelled would leave its source open.
                    self._stop_producing.set()
                    await asyncio.wait([producing], timeout=PRODUCER_LEAVES_S)
                producing.cancel()
        return self._outcome()

    async def _collect(self, log: TrajectoryLog, producing: asyncio.Task[RunProgress], deadline_s: float) -> None:
        clock = asyncio.get_running_loop().time
        while not self._stop.is_set() and clock() < deadline_s:
            if producing.done() and len(self._seen) >= self._wanted:
                return
            try:
                records = await log.fetch(timeout_s=max(0.0, min(FETCH_WAIT_S, deadline_s - clock())))
            except TransientError as error:
                logger.warning("trajectories cannot be read now: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            for record in records:
                if self._stop.is_set():
                    return
                await self._take(record)

    async def _take(self, record: Record) -> None:
        if record.key not in self._keys:
            return
        try:
            trajectory = decode_record(record, Trajectory)
        except InvalidMessageError as error:
            logger.warning("%s is no trajectory: %s", record_place(record), error)
            return
        place = trajectory.group_index, trajectory.member_index
        if place in self._seen:
            return
        self._seen.add(place)
        await self._see(trajectory)
        self._tell()

    @property
    def _wanted(self) -> int:
        return self._progress.groups_total * self._settings.group_size if self._progress is not None else 0

    def _take_progress(self, progress: RunProgress) -> None:
        self._progress = progress
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._on_progress(RolloutProgress(self._progress, len(self._seen), self._wanted))

    def _outcome(self) -> RolloutOutcome:
        groups = self._progress.groups_total if self._progress is not None else 0
        size = self._settings.group_size
        missing = [(g, m) for g in range(groups) for m in range(size) if (g, m) not in self._seen]
        return RolloutOutcome(
            run_id=self._settings.run_id,
            wanted=groups * size,
            missing=len(missing),
            missing_places=[f"{group}/{member}" for group, member in missing[:_LISTED]],
            is_stopped=self._stop.is_set() and bool(missing),
        )


async def _first_places(log: TrajectoryLog, kafka: KafkaSettings, run_id: str) -> Mapping[int, int]:
    """Where the run's trajectories can begin: the present end for a fresh run, else what was written since it began."""
    async with ControlFollower(kafka) as control:
        recorded = next((p for p in control.all(ProducerProgress).values() if p.run_id == run_id), None)
    if recorded is None:
        return await log.end_offsets()
    begun_s = await _first_task_s(kafka, recorded.start_offsets)
    return {} if begun_s is None else await log.offsets_at(begun_s - CLOCKS_APART_S)


async def _first_task_s(kafka: KafkaSettings, start_offsets: Sequence[int]) -> float | None:
    """When the first task at or after ``start_offsets`` was written, unix seconds; None if nobody can tell."""
    consumer = await start_consumer(kafka, kafka.topic("tasks"), auto_offset_reset="earliest")
    try:
        partitions = sorted(consumer.assignment())
        beginnings, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        if len(start_offsets) != len(partitions):
            return None
        starts = dict(zip(partitions, start_offsets, strict=True))
        if any(start < beginnings[partition] for partition, start in starts.items()):
            return None
        left = {partition for partition, start in starts.items() if start < ends[partition]}
        for partition in left:
            consumer.seek(partition, starts[partition])
        reader = SteadyReader(consumer)
        times: list[float] = []
        async with asyncio.timeout(FIRST_TASK_S):
            while left:
                records = await reader.read(*left, timeout_s=FETCH_WAIT_S)
                times += [record.timestamp / 1000 for record in records]
                arrived = {record.partition for record in records}
                left = {partition for partition in left if partition.partition not in arrived}
        return min(times, default=None)
    except TimeoutError as error:
        raise TransientError(f"{kafka.topic('tasks')!r} gave no record for {FIRST_TASK_S:.0f} s") from error
    finally:
        await stop_consumer(consumer)
