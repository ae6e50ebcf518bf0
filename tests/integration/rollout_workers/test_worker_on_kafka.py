"""The rollout worker on a real broker, with a scripted engine: every task ends as one trajectory, whatever happens."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
from aiokafka import TopicPartition

from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.scripted_engine import LatencyProfile, ScriptedFaults
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas import ids
from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import EngineDeadError
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.clients import start_consumer, start_producer
from rollstream.transport.control import ControlFollower
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

DEADLINE_S = 60.0
M = TypeVar("M", bound=Message)


def task(group_index: int, member_index: int = 0, agent: str = "react") -> RolloutTask:
    return RolloutTask(
        run_id="run",
        group_id=ids.group_id("run", group_index),
        group_index=group_index,
        group_size=2,
        member_index=member_index,
        trajectory_id=ids.trajectory_id("run", group_index, member_index),
        messages=[ChatMessage(role="user", content=f"What is the time in city {group_index}?")],
        agent=agent,
    )


async def produce(kafka: KafkaSettings, tasks: list[RolloutTask]) -> None:
    partitions = kafka.topics["tasks"].partitions
    async with Publisher(kafka) as publisher, asyncio.TaskGroup() as group:
        for each in tasks:
            partition = ids.group_partition(each.group_id, partitions)
            group.create_task(publisher.publish(each, key=each.group_id, partition=partition))


async def read(kafka: KafkaSettings, message_type: type[M], count: int) -> list[M]:
    """The first ``count`` messages of a topic, from its beginning."""
    topic = kafka.topic(message_type.topic)
    consumer = await start_consumer(kafka)
    try:
        consumer.assign([TopicPartition(topic, p) for p in range(kafka.topics[message_type.topic].partitions)])
        await consumer.seek_to_beginning()
        found: list[M] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [decode_record(record, message_type) for record in records]
        return found
    finally:
        await consumer.stop()


@asynccontextmanager
async def worker(
    kafka: KafkaSettings,
    name: str,
    *,
    latency: LatencyProfile | None = None,
    faults: ScriptedFaults | None = None,
    max_running: int = 8,
    drain_s: float = 10.0,
) -> AsyncGenerator[asyncio.Task[None]]:
    """A worker for as long as the block runs; it is asked to drain at the end."""
    engine = ScriptedSettings(latency=latency or LatencyProfile(), faults=faults or ScriptedFaults())
    settings = RolloutWorkerSettings(
        engine=engine, worker_id=name, max_running_episodes=max_running, drain_s=drain_s, infra_budget=2
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run_rollout_worker(settings, kafka, stop))
        yield running
        stop.set()


async def test_every_task_ends_as_exactly_one_trajectory(kafka: KafkaSettings) -> None:
    tasks = [task(group, member) for group in range(15) for member in range(2)]
    await produce(kafka, tasks)
    async with worker(kafka, "w0"):
        trajectories = await read(kafka, Trajectory, len(tasks))
    assert sorted(t.trajectory_id for t in trajectories) == sorted(t.trajectory_id for t in tasks)
    assert {t.status for t in trajectories} == {"completed"}
    assert {t.worker_id for t in trajectories} == {"w0"}


async def test_rubbish_goes_to_the_dead_letters_and_its_neighbours_are_not_harmed(kafka: KafkaSettings) -> None:
    producer = await start_producer(kafka)
    partitions = kafka.topics["tasks"].partitions
    for partition in range(partitions):
        await producer.send_and_wait(kafka.topic("tasks"), b"\xff\x00rubbish", key=b"\xfe", partition=partition)
        await producer.send_and_wait(kafka.topic("tasks"), None, key=b"tombstone", partition=partition)
    await producer.stop()
    tasks = [task(group) for group in range(8)]
    await produce(kafka, tasks)
    async with worker(kafka, "w0"):
        trajectories = await read(kafka, Trajectory, len(tasks))
        letters = await read(kafka, DeadLetter, 2 * partitions)
    assert len(trajectories) == 8
    assert Counter(letter.value for letter in letters) == {b"\xff\x00rubbish": partitions, None: partitions}
    assert {letter.key for letter in letters} == {b"\xfe", b"tombstone"}


async def test_a_task_that_cannot_be_run_ends_as_failed_and_as_a_dead_letter(kafka: KafkaSettings) -> None:
    await produce(kafka, [task(0, agent="no-such-agent")])
    async with worker(kafka, "w0"):
        (trajectory,) = await read(kafka, Trajectory, 1)
        (letter,) = await read(kafka, DeadLetter, 1)
    assert (trajectory.status, trajectory.reward, trajectory.samples) == ("failed", None, [])
    assert "no-such-agent" in letter.error


async def test_a_second_worker_joins_and_takes_load_and_nothing_is_lost(kafka: KafkaSettings) -> None:
    tasks = [task(group, member) for group in range(40) for member in range(2)]
    await produce(kafka, tasks)
    slow = LatencyProfile(token_s=0.02)
    async with worker(kafka, "w0", latency=slow, max_running=4):
        await read(kafka, Trajectory, 5)
        async with worker(kafka, "w1", latency=slow, max_running=4):
            first: dict[str, Trajectory] = {}
            for trajectory in await read(kafka, Trajectory, len(tasks)):
                first.setdefault(trajectory.trajectory_id, trajectory)
            count = len(tasks)
            while len(first) < len(tasks):
                count += 1
                for trajectory in await read(kafka, Trajectory, count):
                    first.setdefault(trajectory.trajectory_id, trajectory)
    assert set(first) == {t.trajectory_id for t in tasks}
    assert {t.worker_id for t in first.values()} == {"w0", "w1"}


async def test_what_a_dead_worker_had_begun_is_finished_by_the_next(kafka: KafkaSettings) -> None:
    tasks = [task(group) for group in range(6)]
    await produce(kafka, tasks)
    with pytest.raises(ExceptionGroup) as died:
        async with worker(kafka, "w0", faults=ScriptedFaults(die_after=2), max_running=1) as running:
            await asyncio.wait([running], timeout=DEADLINE_S)
    assert died.group_contains(EngineDeadError)
    async with worker(kafka, "w1"):
        trajectories = await read(kafka, Trajectory, 6)
    assert {t.trajectory_id for t in trajectories} == {t.trajectory_id for t in tasks}
    assert {t.status for t in trajectories} == {"completed"}


async def test_a_drained_worker_leaves_nothing_begun_and_says_so(kafka: KafkaSettings) -> None:
    tasks = [task(group) for group in range(30)]
    await produce(kafka, tasks)
    async with worker(kafka, "w0", latency=LatencyProfile(token_s=0.01), max_running=4):
        before = await read(kafka, Trajectory, 3)
    async with ControlFollower(kafka) as control:
        status = control.all(WorkerStatus)["worker/w0"]
    assert status.state == "stopped"
    assert status.running == 0
    async with worker(kafka, "w1"):
        trajectories = await read(kafka, Trajectory, 30)
    assert 3 <= len(before) < 30
    assert Counter(t.trajectory_id for t in trajectories) == Counter(t.trajectory_id for t in tasks)
