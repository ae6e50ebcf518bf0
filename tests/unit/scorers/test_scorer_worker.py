"""What a scorer says is finished, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from aiokafka import TopicPartition

from rollstream.schemas.codec import encode
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers import GroupScoreRequest, scorer
from rollstream.scorers.attempts import AttemptLimits
from rollstream.scorers.combining import combination
from rollstream.scorers.functions import FunctionScorer
from rollstream.scorers.panel import NamedScorer, ScoringPanel
from rollstream.scorers.service import ScorerWorker
from rollstream.scorers.settings import ScorerSettings

SIZE = 3


class OneGroup:
    """An intake that has the members of one group, and notes what is finished."""

    def __init__(self, members: list[Trajectory]) -> None:
        self._records = [record_of(each, offset) for offset, each in enumerate(members)]
        self.finished_offsets: list[int] = []

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def poll(self, *, max_records: int, timeout_s: float) -> list[Any]:
        polled, self._records = self._records[:max_records], self._records[max_records:]
        await asyncio.sleep(0)
        return polled

    def finished(self, partition: TopicPartition, offset: int) -> None:
        self.finished_offsets.append(offset)


class GatedPublisher:
    """Acknowledges as many trajectories as it is allowed to."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.allowed = asyncio.Semaphore(0)
        self.waits = asyncio.Event()

    async def publish(self, message: object, **options: Any) -> None:
        if not isinstance(message, Trajectory):
            return
        if self.allowed.locked():
            self.waits.set()
        await self.allowed.acquire()
        self.sent.append(message.trajectory_id)


def record_of(trajectory: Trajectory, offset: int) -> Any:
    encoded = encode(trajectory)
    return SimpleNamespace(
        topic="trajectories",
        partition=0,
        offset=offset,
        key=trajectory.group_id.encode(),
        value=encoded.value,
        headers=encoded.headers,
        timestamp=0,
    )


@scorer(group=True)
def rank(request: GroupScoreRequest) -> list[float]:
    return [float(place) for place, _ in enumerate(request.members)]


async def test_no_member_of_a_group_is_finished_before_all_of_them_are_sent(make: Callable[..., Trajectory]) -> None:
    """Or a crash in between would bring the rest back alone, to be ranked without the others."""
    intake, publisher, stop = OneGroup([make(0, member) for member in range(SIZE)]), GatedPublisher(), asyncio.Event()
    how = combination("replace", {}, ["rank"], "outcome")
    panel = ScoringPanel([NamedScorer("rank", FunctionScorer(rank), None)], how, AttemptLimits(1, 1, 1), max_running=1)
    worker = ScorerWorker(ScorerSettings(), "scored", panel, cast("Any", publisher), cast("Any", None))
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(worker.run(cast("Any", intake), stop))
        for _ in range(SIZE - 1):
            publisher.allowed.release()
        while len(publisher.sent) < SIZE - 1:
            await publisher.waits.wait()
            publisher.waits.clear()
        assert intake.finished_offsets == []
        publisher.allowed.release()
        stop.set()
    assert sorted(intake.finished_offsets) == list(range(SIZE))
    assert len(publisher.sent) == SIZE
