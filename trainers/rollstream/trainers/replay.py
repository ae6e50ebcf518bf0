"""Old trajectories once more, as groups and batches: for offline training, comparisons and tests.

Duty: read a stretch of a topic from start to end and deliver its groups, each once, with the filters of the stream.

Invariants: nothing is said on `control` and nothing heard there; no pace, no age, no lineage, no deadline. Over the
same stretch the batches are always the same.

Crash: there is nothing to restore; begin again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypedDict, Unpack

from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup
from rollstream.trainers.loop_thread import LoopThread
from rollstream.trainers.seeking import SeekTarget, find_offsets
from rollstream.trainers.settings import StreamOptions, TrainedTopic, kafka_settings, trainer_settings
from rollstream.trainers.stream import OnEvaluation
from rollstream.trainers.stream_state import StreamStats
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.records import Record, decode_record, record_place
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

FETCH_WAIT_S = 0.2
RECORDS_PER_TURN = 32


class ReplayOptions(TypedDict, total=False):
    """The options of the stream that say something about old data; see ``TrainerSettings``."""

    topic: TrainedTopic
    run_id: str | None
    groups_per_batch: int
    min_members: int
    partial_groups: Literal["drop", "keep"]
    truncated: Literal["keep", "drop_member", "drop_group"]
    max_sample_tokens: int | None
    needs_reward: bool
    drop_zero_variance: bool
    timeout_s: float
    max_batches: int | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is replayed: from ``start`` up to, and without, ``end``; both as in ``seek``."""

    start: SeekTarget = "beginning"
    end: SeekTarget = "end"


class AsyncTrajectoryReplay:
    """An async context manager and async iterator of ``TrainingBatch``; used by one task at a time.

    A group is delivered when all its members are there, whatever their status, the others at the end of the stretch.
    The ``version`` of batches and the ``staleness`` of groups say nothing here: nobody trains at a version.
    """

    def __init__(
        self,
        kafka: str | KafkaSettings,
        *,
        prefix: str | None = None,
        start: SeekTarget = "beginning",
        end: SeekTarget = "end",
        on_evaluation: OnEvaluation | None = None,
        **options: Unpack[ReplayOptions],
    ) -> None:
        """Connects to nothing yet.

        Args:
            kafka: ``host:port``, or complete settings.
            prefix: of all topics.
            start: where to begin, as in ``AsyncTrajectoryStream.seek``.
            end: where to stop; "end" is the end of the topic when reading begins.
            on_evaluation: gets every group of evaluation tasks once; without it they are left out.
            options: see ``ReplayOptions``.

        Raises:
            SettingsError: an argument is wrong.
        """
        fixed: StreamOptions = {"max_staleness": None, "is_observer": True, "stale": "drop"}
        self.settings = trainer_settings({**fixed, **options})
        self._kafka = kafka_settings(kafka, prefix)
        self._stretch = Stretch(start, end)
        self._on_evaluation = on_evaluation
        self._log = TrajectoryLog(self._kafka, topic=self.settings.topic)
        self._former = BatchFormer(self.settings, self._log.topic)
        self._ends: dict[int, int] | None = None
        self._fetched: deque[Record] = deque()
        self._has_ended = False

    async def __aenter__(self) -> AsyncTrajectoryReplay:
        await self._log.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._log.__aexit__(exc_type, exc, tb)

    def __aiter__(self) -> AsyncTrajectoryReplay:
        return self

    async def __anext__(self) -> TrainingBatch:
        """The next batch.

        Raises:
            SettingsError: the topic has no such start or end.
            TimeoutError: the records of a batch did not come within ``timeout_s``.
            DataLossError: retention has deleted records of the stretch meanwhile.
            TransientError: the broker does not answer.
        """
        ends = await self._begin()
        self._former.finish_batch()
        started = time.monotonic()
        while True:
            batch = self._former.next_batch()
            self._hand_over_evaluations()
            if batch is not None:
                return batch
            if self._former.has_ended:
                raise StopAsyncIteration
            if time.monotonic() - started > self.settings.timeout_s:
                raise TimeoutError(
                    f"no batch of {self._log.topic!r} within {self.settings.timeout_s:.0f} s: read up to "
                    f"{dict(self._former.read_to)} of {ends}"
                )
            await self._take_in(ends)

    def stats(self) -> StreamStats:
        """Counters and sizes now; those of pace, age and control mean nothing here."""
        return self._former.stats()

    async def _begin(self) -> dict[int, int]:
        if self._ends is None:
            run_id = self.settings.run_id
            ends = await find_offsets(self._log, self._stretch.end, run_id=run_id)
            starts = await find_offsets(self._log, self._stretch.start, run_id=run_id)
            self._former.begin_at(await self._log.seek(starts))
            self._ends = ends
        return self._ends

    async def _take_in(self, ends: dict[int, int]) -> None:
        if not self._fetched:
            if all(self._former.read_to[partition] >= end for partition, end in ends.items()):
                self._former.end()
                return
            self._fetched.extend(await self._log.fetch(timeout_s=FETCH_WAIT_S))
        for _ in range(min(RECORDS_PER_TURN, len(self._fetched))):
            self._add(self._fetched.popleft(), ends)
            if not self._former.is_settled:
                return
        await asyncio.sleep(0)

    def _add(self, record: Record, ends: dict[int, int]) -> None:
        if record.offset >= ends[record.partition]:
            return
        try:
            trajectory = decode_record(record, Trajectory)
            self._former.add(trajectory, record.partition, record.offset, now_s=0.0)
        except InvalidMessageError as error:
            logger.warning("%s is left out: %s", record_place(record), error)
            self._former.skip(record.partition, record.offset)

    def _hand_over_evaluations(self) -> None:
        for group in self._former.take_evaluations():
            if self._on_evaluation is not None:
                self._on_evaluation(group)


class TrajectoryReplay:
    """A context manager and iterator of ``TrainingBatch``; what ``AsyncTrajectoryReplay`` promises holds here."""

    def __init__(
        self,
        kafka: str | KafkaSettings,
        *,
        prefix: str | None = None,
        start: SeekTarget = "beginning",
        end: SeekTarget = "end",
        on_evaluation: OnEvaluation | None = None,
        **options: Unpack[ReplayOptions],
    ) -> None:
        """Connects to nothing yet; the arguments are those of ``AsyncTrajectoryReplay``."""
        self._on_evaluation = on_evaluation
        self._evaluations: deque[TrajectoryGroup] = deque()
        on_loop = self._evaluations.append if on_evaluation is not None else None
        self._replay = AsyncTrajectoryReplay(
            kafka, prefix=prefix, start=start, end=end, on_evaluation=on_loop, **options
        )
        usage = "the replay is not open: use it inside `with TrajectoryReplay(…) as replay:`"
        self._thread = LoopThread(self._replay, usage=usage)

    def __enter__(self) -> TrajectoryReplay:
        self._thread.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._thread.close()

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self

    def __next__(self) -> TrainingBatch:
        """The next batch; see ``AsyncTrajectoryReplay.__anext__`` for what it raises."""
        try:
            batch = self._thread.call(self._next())
        finally:
            while self._evaluations and self._on_evaluation is not None:
                self._on_evaluation(self._evaluations.popleft())
        if batch is None:
            raise StopIteration
        return batch

    def stats(self) -> StreamStats:
        """Counters and sizes now; those of pace, age and control mean nothing here."""
        return self._replay.stats()

    async def _next(self) -> TrainingBatch | None:
        return await anext(self._replay, None)
