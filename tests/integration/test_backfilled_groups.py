"""Backfill from end to end: members that fail are rolled out again, and every group reaches the trainer whole."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from rollstream.producers.service import produce
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.ids import group_partition
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Sample, Trajectory, TrajectoryError, VersionSpan
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

GROUPS, GROUP_SIZE = 8, 3


def has_failed(task: RolloutTask) -> bool:
    """Member 1 of every second group fails at first, and in group 6 once more."""
    failures = {6: 2}.get(task.group_index, 1)
    return task.member_index == 1 and task.group_index % 2 == 0 and task.replacement < failures


def rolled_out(task: RolloutTask) -> Trajectory:
    sample = Sample(
        prompt_ids=np.arange(3, dtype=np.int32),
        response_ids=np.arange(5, dtype=np.int32),
        response_mask=np.ones(5, dtype=np.uint8),
        response_logprobs=np.full(5, -1.0, dtype=np.float32),
        version_spans=[VersionSpan(0, 5, 0, 0)],
        turns=[],
    )
    failed = has_failed(task)
    return Trajectory(
        run_id=task.run_id, trajectory_id=task.trajectory_id, group_id=task.group_id, group_index=task.group_index,
        group_size=task.group_size, member_index=task.member_index, replacement=task.replacement,
        status="failed" if failed else "completed", stop_reason="infrastructure" if failed else "stop",
        samples=[] if failed else [sample], reward=None if failed else 1.0,
        error=TrajectoryError(type="EngineError", message="died") if failed else None,
    )  # fmt: skip


async def roll_out(kafka: KafkaSettings) -> None:
    """A worker without an engine."""
    consumer = await start_consumer(kafka, kafka.topic("tasks"))
    try:
        async with Publisher(kafka) as publisher:
            while True:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for task in [decode_record(record, RolloutTask) for record in records]:
                        partition = group_partition(task.group_id, kafka.topics["trajectories"].partitions)
                        await publisher.publish(rolled_out(task), key=task.group_id, partition=partition)
    finally:
        await stop_consumer(consumer)


async def test_failed_members_are_replaced_until_every_group_is_whole(kafka: KafkaSettings, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n}?"}) + "\n" for n in range(GROUPS)))
    settings = ProducerSettings(source=str(rows), run_id="run", group_size=GROUP_SIZE, is_paced=True)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        producing = group.create_task(produce(settings, kafka, asyncio.Event()))
        working = group.create_task(roll_out(kafka))
        options = {"groups_per_batch": 2, "partial_groups": "backfill", "backfill_rounds": 2, "max_staleness": None}
        async with AsyncTrajectoryStream(kafka, **options) as stream:  # pyright: ignore[reportArgumentType]  -- mixed values
            groups = [found async for batch in stream for found in batch.groups]
            stats = stream.stats()
        done = await producing
        working.cancel()
    assert sorted(found.group_index for found in groups) == list(range(GROUPS))
    assert all(len(found.trajectories) == GROUP_SIZE for found in groups)
    replaced = {(found.group_index, t.member_index): t.replacement for found in groups for t in found.trajectories}
    assert {place: number for place, number in replaced.items() if number} == {
        (0, 1): 1,
        (2, 1): 1,
        (4, 1): 1,
        (6, 1): 2,
    }
    assert (done.state, done.replacements_sent) == ("finished", 5)
    assert stats.groups_dropped == 0
