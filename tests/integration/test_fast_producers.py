"""Producers and a worker that are never the bottleneck: age stays bounded, and the limit is kept, trainer dead or not.

What is emitted is rolled out at once, many times faster than the trainer takes it, in an order of its own; so only the
limit holds anything back.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from rollstream.producers.service import produce
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.control import PolicyVersion, ProducerProgress
from rollstream.schemas.ids import group_partition
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers import AsyncTrajectoryStream, TrainingBatch
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.control import ControlFollower
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.timeout(150)]

RUNS = {"algebra": 48, "code": 32}
GROUP_SIZE, GROUPS_PER_BATCH, DEPTH, MAX_STALENESS = 2, 4, 2, 4
UNDER_WAY = (DEPTH + 1) * GROUPS_PER_BATCH
OPTIONS: dict[str, Any] = {
    "groups_per_batch": GROUPS_PER_BATCH,
    "pipeline_depth": DEPTH,
    "max_staleness": MAX_STALENESS,
    "timeout_s": 60.0,
}
EPISODES_AT_ONCE = 6


class Worker:
    """Takes tasks as they come and ends a random one of those in hand; each is of the policy that was newest before."""

    def __init__(self, kafka: KafkaSettings, publisher: Publisher, control: ControlFollower) -> None:
        self._kafka, self._publisher, self._control = kafka, publisher, control
        self._random = Random(1)
        self._in_hand: list[tuple[RolloutTask, int, int]] = []
        self.groups: set[tuple[str, int]] = set()

    async def run(self) -> None:
        consumer = await start_consumer(self._kafka, self._kafka.topic("tasks"))
        try:
            while True:
                batches = (await consumer.getmany(timeout_ms=50, max_records=4)).values()
                for task in [decode_record(record, RolloutTask) for records in batches for record in records]:
                    self._begin(task)
                while self._in_hand and (not batches or len(self._in_hand) > EPISODES_AT_ONCE):
                    await self._end(*self._in_hand.pop(self._random.randrange(len(self._in_hand))))
        finally:
            await stop_consumer(consumer)

    def _begin(self, task: RolloutTask) -> None:
        newest = self._control.latest(PolicyVersion)
        version, lineage = (newest[0].version, newest[0].lineage) if newest else (0, 0)
        self.groups.add((task.run_id, task.group_index))
        self._in_hand.append((task, version, lineage))

    async def _end(self, task: RolloutTask, version: int, lineage: int) -> None:
        trajectory = rolled_out(task, version, lineage)
        partition = group_partition(task.group_id, self._kafka.topics["trajectories"].partitions)
        await self._publisher.publish(trajectory, key=task.group_id, partition=partition)


def rolled_out(task: RolloutTask, version: int, lineage: int) -> Trajectory:
    sample = Sample(
        prompt_ids=np.arange(3, dtype=np.int32),
        response_ids=np.arange(5, dtype=np.int32),
        response_mask=np.ones(5, dtype=np.uint8),
        response_logprobs=np.full(5, -1.0, dtype=np.float32),
        version_spans=[VersionSpan(0, 5, version, lineage)],
        turns=[],
    )
    return Trajectory(
        run_id=task.run_id, trajectory_id=task.trajectory_id, group_id=task.group_id, group_index=task.group_index,
        group_size=task.group_size, member_index=task.member_index, status="completed", stop_reason="stop",
        samples=[sample], reward=float(task.member_index), lineage=lineage, policy_version_min=version,
        policy_version_max=version, worker_id="w",
    )  # fmt: skip


@asynccontextmanager
async def pipeline(kafka: KafkaSettings, folder: Path) -> AsyncGenerator[Worker]:
    """Two producers and the worker; on leaving, the producers have come to their end."""
    async with Publisher(kafka) as publisher, ControlFollower(kafka) as control, asyncio.TaskGroup() as group:
        worker = Worker(kafka, publisher, control)
        working = group.create_task(worker.run())
        producing: list[asyncio.Task[Any]] = []
        for run, rows in RUNS.items():
            path = folder / f"{run}.jsonl"
            path.write_text("".join(json.dumps({"question": f"{run} {n}?"}) + "\n" for n in range(rows)))
            settings = ProducerSettings(source=str(path), run_id=run, group_size=GROUP_SIZE, is_paced=True)
            producing.append(group.create_task(produce(settings, kafka, asyncio.Event())))
        yield worker
        async with asyncio.timeout(30):
            assert {done.state for done in await asyncio.gather(*producing)} == {"finished"}
        working.cancel()


def weights(folder: Path, version: int) -> Path:
    directory = folder / f"v{version}"
    directory.mkdir(exist_ok=True)
    (directory / "weights").write_bytes(b"weights")
    return directory


def keys(batch: TrainingBatch) -> list[tuple[str, int]]:
    return [(group.run_id, group.group_index) for group in batch.groups]


async def test_what_producers_that_are_too_fast_make_is_never_too_old(kafka: KafkaSettings, tmp_path: Path) -> None:
    async with pipeline(kafka, tmp_path) as worker, AsyncTrajectoryStream(kafka, **OPTIONS) as stream:
        version, trained = 0, Counter[tuple[str, int]]()
        async for batch in stream:
            assert len(worker.groups) <= stream.stats().emit_limit
            trained.update(keys(batch))
            version += 1
            await stream.publish_policy(version, weights(tmp_path, version))
        stats = stream.stats()
    assert stats.max_staleness <= MAX_STALENESS
    assert stats.mean_staleness <= DEPTH + 1
    assert stats.groups_consumed + stats.groups_dropped == sum(RUNS.values())
    assert set(trained.values()) == {1}
    print(f"staleness: mean {stats.mean_staleness:.2f}, max {stats.max_staleness}; dropped {stats.groups_dropped}")


async def test_a_trainer_that_died_finds_its_accounts_again(kafka: KafkaSettings, tmp_path: Path) -> None:
    """Killed with batches behind its checkpoint, again and again, while the producers wait."""
    async with pipeline(kafka, tmp_path) as worker:
        state: dict[str, Any] | None = None
        version, highest = 0, 0
        trained: list[tuple[str, int]] = []
        for saved, unsaved in ((2, 2), (3, 1), (4, 3), (100, 0)):
            async with AsyncTrajectoryStream(kafka, **OPTIONS) as stream:
                if state is not None:
                    stream.load_state_dict(state)
                    version = state["version"]
                for number in range(saved + unsaved):
                    batch = await anext(stream, None)
                    if batch is None:
                        break
                    version += 1
                    await stream.publish_policy(version, weights(tmp_path, version))
                    stats = stream.stats()
                    highest = max(highest, stats.emit_limit)
                    assert stats.emit_limit == stats.groups_consumed + stats.groups_dropped + UNDER_WAY
                    assert len(worker.groups) <= highest
                    if number < saved:
                        trained += keys(batch)
                        state = stream.state_dict()
        assert stream.stats().groups_consumed + stream.stats().groups_dropped == sum(RUNS.values())
        assert max(Counter(trained).values()) == 1
        assert len(trained) == stream.stats().groups_consumed
    async with ControlFollower(kafka) as control:
        emitted = {progress.run_id: progress.groups_emitted for progress in control.all(ProducerProgress).values()}
    assert emitted == RUNS
