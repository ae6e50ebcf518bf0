"""However many tasks are queued, a rollout worker and a producer stay as large as they are."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from rollstream.schemas import ids
from rollstream.schemas.codec import encode
from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.transport.clients import start_producer
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_watch import topic_ends

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300)]

TASKS = int(os.environ.get("QUEUED_TASKS", "200000"))
SLOTS = 4
MIB = 1024**2
FETCHED_AHEAD_MIB = 4 * 4 * 2
"""Four partitions, at most four MiB fetched ahead of each, held twice for a moment."""
SETTLED_TRAJECTORIES = 40
LATER_TRAJECTORIES = 400


def template() -> RolloutTask:
    return RolloutTask(
        run_id="run",
        group_id=ids.group_id("run", 0),
        group_index=0,
        group_size=1,
        member_index=0,
        trajectory_id=ids.trajectory_id("run", 0, 0),
        messages=[ChatMessage(role="user", content="What is the time?")],
    )


async def queue(kafka: KafkaSettings, count: int) -> None:
    """As fast as it goes: whole batches, made here."""
    producer, task = await start_producer(kafka), template()
    partitions = kafka.topics["tasks"].partitions
    try:
        for partition in range(partitions):
            batch, sent = producer.create_batch(), []
            for index in range(partition, count, partitions):
                each = msgspec.structs.replace(
                    task,
                    group_id=ids.group_id("run", index),
                    group_index=index,
                    trajectory_id=ids.trajectory_id("run", index, 0),
                )
                record = encode(each)
                while batch.append(key=b"k", value=record.value, timestamp=None, headers=record.headers) is None:
                    batch.close()
                    sent.append(await producer.send_batch(batch, kafka.topic("tasks"), partition=partition))
                    batch = producer.create_batch()
            batch.close()
            sent.append(await producer.send_batch(batch, kafka.topic("tasks"), partition=partition))
            await asyncio.gather(*sent)
    finally:
        await producer.stop()
    ends = (await topic_ends(kafka, [kafka.topic("tasks")]))[kafka.topic("tasks")]
    assert ends is not None
    assert sum(ends) == count


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


@asynccontextmanager
async def worker(kafka: KafkaSettings, folder: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
    config = folder / "rollstream.toml"
    partitions = "\n".join(f"{json.dumps(topic)} = {count}" for topic, count in kafka.partitions.items())
    config.write_text(
        f"""
[kafka]
bootstrap = "{kafka.bootstrap}"
prefix = "{kafka.prefix}"
[kafka.partitions]
{partitions}
[rollout_worker]
worker_id = "w"
max_running_episodes = {SLOTS}
drain_s = 1
[rollout_worker.engine]
kind = "scripted"
[rollout_worker.engine.latency]
token_s = 0.001
"""
    )
    log = (folder / "worker.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rollstream.cli.main", "--config", str(config), "rollout-worker", stdout=log, stderr=log
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        log.close()


async def sizes(kafka: KafkaSettings, folder: Path) -> tuple[float, float]:
    """Resident MiB of a worker after some trajectories, and after many more."""
    found: list[float] = []
    async with worker(kafka, folder) as process, ControlFollower(kafka) as control, asyncio.timeout(120):
        for finished in (SETTLED_TRAJECTORIES, LATER_TRAJECTORIES):
            while (status := control.all(WorkerStatus).get("worker/w")) is None or status.finished < finished:
                assert process.returncode is None, (folder / "worker.log").read_text()[-3000:]
                await control.wait_for_change(timeout_s=5)
            assert status.running <= SLOTS
            found.append(resident_mib(process.pid))
    return found[0], found[1]


async def test_a_long_queue_leaves_the_memory_of_a_rollout_worker_flat(kafka: KafkaSettings, tmp_path: Path) -> None:
    await queue(kafka, TASKS)
    first, later = await sizes(kafka, tmp_path)
    print(f"{TASKS} tasks: {first:.0f} MiB after {SETTLED_TRAJECTORIES} ended, {later:.0f} after {LATER_TRAJECTORIES}")
    assert later - first < FETCHED_AHEAD_MIB
    assert first < 250
