"""A trainer that is away stops production at its limit and by nothing else; when it is back, everything goes on.

The hour is short here: what holds the producer is the limit, which knows no clock.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollstream.producers.service import RunProgress, produce
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.ids import group_partition
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.control import ControlFollower
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

GROUPS, GROUP_SIZE, GROUPS_PER_BATCH, DEPTH, MAX_STALENESS = 60, 2, 2, 5, 1
UNDER_WAY = (DEPTH + 1) * GROUPS_PER_BATCH
OPTIONS: dict[str, Any] = {
    "groups_per_batch": GROUPS_PER_BATCH,
    "pipeline_depth": DEPTH,
    "max_staleness": MAX_STALENESS,
    "timeout_s": 40.0,
}
AWAY_LOOKS = 3


def rolled_out(task: RolloutTask, policy: PolicyVersion | None) -> Trajectory:
    version, lineage = (policy.version, policy.lineage) if policy else (0, 0)
    sample = Sample(
        prompt_ids=np.arange(3, dtype=np.int32),
        response_ids=np.arange(5, dtype=np.int32),
        response_mask=np.ones(5, dtype=np.uint8),
        response_logprobs=np.full(5, -1.0, dtype=np.float32),
        version_spans=[VersionSpan(0, 5, version, lineage)],
        turns=[],
    )
    return Trajectory(
        run_id=task.run_id,
        trajectory_id=task.trajectory_id,
        group_id=task.group_id,
        group_index=task.group_index,
        group_size=task.group_size,
        member_index=task.member_index,
        status="completed",
        stop_reason="stop",
        samples=[sample],
        reward=float(task.member_index),
        lineage=lineage,
        policy_version_min=version,
        policy_version_max=version,
        worker_id="w",
    )


async def roll_out(kafka: KafkaSettings) -> None:
    """A rollout worker without an engine: every task becomes a trajectory of the newest policy."""
    consumer = await start_consumer(kafka, kafka.topic("tasks"))
    try:
        async with ControlFollower(kafka) as control, Publisher(kafka) as publisher:
            while True:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        task = decode_record(record, RolloutTask)
                        policy = control.latest(PolicyVersion)
                        trajectory = rolled_out(task, policy[0] if policy else None)
                        partition = group_partition(task.group_id, kafka.topics["trajectories"].partitions)
                        await publisher.publish(trajectory, key=task.group_id, partition=partition)
    finally:
        await stop_consumer(consumer)


class Watched:
    """Where the producer stands."""

    def __init__(self) -> None:
        self.now: RunProgress | None = None
        self._changed = asyncio.Event()

    def __call__(self, progress: RunProgress) -> None:
        self.now = progress
        self._changed.set()

    async def until_waiting_at(self, groups: int) -> None:
        async with asyncio.timeout(30):
            while self.now is None or (self.now.state, self.now.groups_done) != ("waiting_for_trainer", groups):
                self._changed.clear()
                await self._changed.wait()


def weights(folder: Path, version: int) -> Path:
    directory = folder / f"v{version}"
    directory.mkdir(exist_ok=True)
    (directory / "weights").write_bytes(b"weights")
    return directory


async def test_production_stops_at_the_limit_and_goes_on_when_the_trainer_is_back(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n}?"}) + "\n" for n in range(GROUPS)))
    settings = ProducerSettings(source=str(rows), run_id="run", group_size=GROUP_SIZE, is_paced=True)
    watched, stop = Watched(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        producing = group.create_task(produce(settings, kafka, stop, watched))
        working = group.create_task(roll_out(kafka))

        await watched.until_waiting_at(0)
        async with AsyncTrajectoryStream(kafka, **OPTIONS) as stream:
            await anext(stream)
            await stream.publish_policy(1, weights(tmp_path, 1))
            state = stream.state_dict()
            limit = stream.stats().emit_limit
        assert limit == UNDER_WAY + GROUPS_PER_BATCH

        await watched.until_waiting_at(limit)
        for _ in range(AWAY_LOOKS):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.shield(producing)
            assert not producing.done(), "it neither ends nor fails while nobody trains"
            assert watched.now is not None
            assert (watched.now.state, watched.now.groups_done) == ("waiting_for_trainer", limit)

        async with AsyncTrajectoryStream(kafka, **OPTIONS) as stream:
            stream.load_state_dict(state)
            version = state["version"]
            async for batch in stream:
                assert all(g.staleness is not None and g.staleness <= MAX_STALENESS for g in batch.groups)
                version += 1
                await stream.publish_policy(version, weights(tmp_path, version))
            stats = stream.stats()
        assert producing.done()
        working.cancel()
    assert stats.groups_consumed + stats.stale_dropped == GROUPS
    assert stats.stale_dropped >= GROUPS_PER_BATCH, "what was made for an old policy is dropped, its places given back"
    assert stats.max_staleness <= MAX_STALENESS
    assert producing.result().state == "finished"
