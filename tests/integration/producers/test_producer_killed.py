"""P1 and P3 on the real thing: producers killed at any line repeat no task and skip none."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rollstream.schemas.control import ProducerProgress, TrainerProgress
from rollstream.schemas.ids import group_partition, trajectory_id
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(200)]

ROWS, GROUP_SIZE, EPOCHS = 60, 4, 2
SCRIPT = Path(__file__).with_name("killed_producer.py")


async def killed_again_and_again(kafka: KafkaSettings, folder: Path, run_id: str, kills: list[int], **more: Any) -> int:
    """Emit a run, killed before each of these lines; how often it was killed."""
    rows = folder / f"{run_id}.jsonl"
    rows.write_text("".join(json.dumps({"question": f"What is {n} + {n}?"}) + "\n" for n in range(ROWS)))
    producer = {"source": str(rows), "run_id": run_id, "group_size": GROUP_SIZE, "is_paced": False, **more}
    job = {"producer": producer, "kafka": kafka.model_dump(mode="json", exclude_none=True), "kills": kills}
    path = folder / f"{run_id}.json"
    path.write_text(json.dumps(job))
    completed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(SCRIPT), str(path)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return int(completed.stdout)


async def tasks_in(kafka: KafkaSettings) -> list[tuple[int, RolloutTask]]:
    consumer = await start_consumer(kafka, kafka.topic("tasks"))
    found: list[tuple[int, RolloutTask]] = []
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(p) < end for p, end in ends.items()]):
            for partition, records in (await consumer.getmany(timeout_ms=1000)).items():
                found += [(partition.partition, decode_record(record, RolloutTask)) for record in records]
    finally:
        await stop_consumer(consumer)
    return found


async def allow(kafka: KafkaSettings, groups: int) -> None:
    """A trainer's limit, which leaves the run that keeps to it no place too many."""
    message = TrainerProgress(
        trainer_id="t", lineage=0, version=0, groups_consumed=0, groups_dropped=0, emit_limit=groups
    )
    async with Publisher(kafka) as publisher:
        await publisher.publish(message, key=control_key(message))


async def test_killed_at_any_line_producers_repeat_no_task_and_skip_none(kafka: KafkaSettings, tmp_path: Path) -> None:
    random = Random(5)
    kills = {run: [random.randint(1, 4000) for _ in range(20)] for run in ("in-order", "shuffled", "paced")}
    await allow(kafka, ROWS * (2 + EPOCHS))
    killed = await asyncio.gather(
        killed_again_and_again(kafka, tmp_path, "in-order", kills["in-order"]),
        killed_again_and_again(
            kafka,
            tmp_path,
            "shuffled",
            kills["shuffled"],
            is_shuffled=True,
            seed=3,
            epochs=EPOCHS,
            max_groups_in_flight=2,
        ),
        killed_again_and_again(kafka, tmp_path, "paced", kills["paced"], is_paced=True),
    )
    assert min(killed) >= 5
    tasks = await tasks_in(kafka)
    wanted = {
        trajectory_id(run, group, member)
        for run, groups in (("in-order", ROWS), ("shuffled", ROWS * EPOCHS), ("paced", ROWS))
        for group in range(groups)
        for member in range(GROUP_SIZE)
    }
    assert Counter(task.trajectory_id for _, task in tasks) == dict.fromkeys(wanted, 1)
    assert all(partition == group_partition(task.group_id, 4) for partition, task in tasks)
    texts = Counter(task.messages[-1].content for _, task in tasks if task.run_id == "shuffled")
    assert set(texts.values()) == {GROUP_SIZE * EPOCHS}, "every row in every epoch"
    async with ControlFollower(kafka) as control:
        assert all(progress.is_finished for progress in control.all(ProducerProgress).values())
