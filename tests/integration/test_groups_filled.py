"""Members that fail, or never come, are rolled out once more: by a real producer, and a worker without an engine."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from rollstream.producers.service import RunProgress, produce
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.ids import group_partition
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Sample, Trajectory, TrajectoryError, VersionSpan
from rollstream.trainers import AsyncTrajectoryStream, StreamStats
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

GROUPS, GROUP_SIZE = 6, 3
FAILURES = {(0, 0): 1, (3, 1): 1, (3, 2): 1, (5, 0): 2}
"""How often a (group, member) fails; all others succeed."""
NEVER_COMES = {(2, 1)}


def rolled_out(task: RolloutTask) -> Trajectory:
    is_failed = task.replacement < FAILURES.get((task.group_index, task.member_index), 0)
    sample = Sample(
        prompt_ids=np.arange(3, dtype=np.int32),
        response_ids=np.arange(5, dtype=np.int32),
        response_mask=np.ones(5, dtype=np.uint8),
        response_logprobs=np.full(5, -1.0, dtype=np.float32),
        version_spans=[VersionSpan(0, 5, 0, 0)],
        turns=[],
    )
    return Trajectory(
        run_id=task.run_id,
        trajectory_id=task.trajectory_id,
        group_id=task.group_id,
        group_index=task.group_index,
        group_size=task.group_size,
        member_index=task.member_index,
        replacement=task.replacement,
        status="failed" if is_failed else "completed",
        stop_reason="infrastructure" if is_failed else "stop",
        samples=[] if is_failed else [sample],
        reward=None if is_failed else 1.0,
        error=TrajectoryError(type="EngineError", message="died") if is_failed else None,
        worker_id="w",
    )


async def roll_out(kafka: KafkaSettings) -> None:
    """Every task becomes a trajectory of the model as it came, except those that never come."""
    consumer = await start_consumer(kafka, kafka.topic("tasks"))
    try:
        async with Publisher(kafka) as publisher:
            while True:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        task = decode_record(record, RolloutTask)
                        if not task.replacement and (task.group_index, task.member_index) in NEVER_COMES:
                            continue
                        partition = group_partition(task.group_id, kafka.topics["trajectories"].partitions)
                        await publisher.publish(rolled_out(task), key=task.group_id, partition=partition)
    finally:
        await stop_consumer(consumer)


async def trained(
    kafka: KafkaSettings, folder: Path, rounds: int
) -> tuple[dict[int, list[tuple[int, int]]], StreamStats, RunProgress]:
    """Per group the (member, replacement) that were trained on."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n}?"}) + "\n" for n in range(GROUPS)))
    settings = ProducerSettings(source=str(rows), run_id="run", group_size=GROUP_SIZE, is_paced=True)
    members: dict[int, list[tuple[int, int]]] = {}
    async with asyncio.TaskGroup() as group:
        producing = group.create_task(produce(settings, kafka, asyncio.Event()))
        working = group.create_task(roll_out(kafka))
        async with AsyncTrajectoryStream(
            kafka,
            groups_per_batch=1,
            partial_groups="backfill",
            backfill_rounds=rounds,
            max_staleness=None,
            group_deadline_s=15.0,
            timeout_s=90.0,
        ) as stream:
            async for batch in stream:
                for found in batch.groups:
                    members[found.group_index] = [(t.member_index, t.replacement) for t in found.trajectories]
            stats = stream.stats()
        progress = await producing
        working.cancel()
    return members, stats, progress


@pytest.mark.parametrize("rounds", [1, 2])
async def test_groups_are_whole_again_where_another_rollout_succeeds(
    kafka: KafkaSettings, tmp_path: Path, rounds: int
) -> None:
    members, stats, progress = await trained(kafka, tmp_path, rounds)

    assert members == {
        0: [(0, 1), (1, 0), (2, 0)],
        1: [(0, 0), (1, 0), (2, 0)],
        2: [(0, 0), (1, 1), (2, 0)],
        3: [(0, 0), (1, 1), (2, 1)],
        4: [(0, 0), (1, 0), (2, 0)],
        5: [(1, 0), (2, 0)] if rounds == 1 else [(0, 2), (1, 0), (2, 0)],
    }
    assert (stats.groups_consumed, stats.groups_dropped) == (GROUPS, 0)
    assert stats.replacements == progress.replacements_sent == 4 + rounds
    assert progress.state == "finished"
