"""Evaluation tasks pinned to policies, beside training tasks, on a worker with fewer slots than pinned tasks."""
# aiokafka is partly annotated:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from aiokafka import TopicPartition
from msgspec import UNSET

from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.scripted_engine import LatencyProfile
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas import ids
from rollstream.schemas.control import PolicyVersion, WorkerStatus
from rollstream.schemas.tasks import ChatMessage, PolicyPin, RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.clients import start_consumer
from rollstream.transport.control import control_key
from rollstream.transport.policy_files import seal_policy
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

DEADLINE_S = 60.0
GROUPS = 24
Kind = Literal["full", "lora"]


def policies(folder: Path, kind: Kind) -> list[PolicyVersion]:
    """Three versions of one trainer."""
    versions: list[PolicyVersion] = []
    for version in (1, 2, 3):
        directory = folder / f"v{version}"
        directory.mkdir()
        (directory / "weights").write_bytes(b"w")
        versions.append(
            PolicyVersion(
                lineage=7, version=version, uri=str(directory), manifest_sha256=seal_policy(directory), kind=kind
            )
        )
    return versions


def pin_on(policy: PolicyVersion) -> PolicyPin:
    return PolicyPin(
        lineage=policy.lineage,
        version=policy.version,
        uri=policy.uri,
        manifest_sha256=policy.manifest_sha256,
        kind=policy.kind,
    )


def task(group_index: int, pins: Sequence[PolicyPin | None]) -> RolloutTask:
    """Pinned to one after the other; None: a training task."""
    pin = pins[group_index % len(pins)]
    return RolloutTask(
        run_id="run",
        group_id=ids.group_id("run", group_index),
        group_index=group_index,
        group_size=1,
        member_index=0,
        trajectory_id=ids.trajectory_id("run", group_index, 0),
        messages=[ChatMessage(role="user", content=f"What is the time in city {group_index}?")],
        is_train=pin is None,
        policy=UNSET if pin is None else pin,
    )


async def read_trajectories(kafka: KafkaSettings, count: int) -> list[Trajectory]:
    consumer = await start_consumer(kafka)
    try:
        topic = kafka.topics["trajectories"]
        consumer.assign([TopicPartition(topic.name, partition) for partition in range(topic.partitions)])
        await consumer.seek_to_beginning()
        found: list[Trajectory] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [decode_record(record, Trajectory) for record in records]
        return found
    finally:
        await consumer.stop()


@pytest.mark.parametrize("kind", ["full", "lora"])
async def test_pinned_and_training_tasks_share_a_worker_and_each_has_the_weights_it_asked_for(
    kafka: KafkaSettings, tmp_path: Path, kind: Kind
) -> None:
    versions = policies(tmp_path, kind)
    pins = [None, pin_on(versions[0]), PolicyPin(lineage=0, version=0)]
    tasks = [task(group_index, pins) for group_index in range(GROUPS)]
    latency = LatencyProfile(token_s=0.001)
    settings = RolloutWorkerSettings(
        engine=ScriptedSettings(latency=latency, serves_adapters=kind == "lora"),
        worker_id="w",
        max_running_episodes=2,
    )
    stop = asyncio.Event()
    partitions = kafka.topics["tasks"].partitions
    async with Publisher(kafka) as publisher, asyncio.TaskGroup() as group:
        await publisher.publish(versions[0], key=control_key(versions[0]))
        for each in tasks:
            await publisher.publish(each, key=each.group_id, partition=ids.group_partition(each.group_id, partitions))
        group.create_task(run_rollout_worker(settings, kafka, stop))
        for version, count in zip(versions[1:], (2, 4), strict=True):
            await read_trajectories(kafka, count)
            await publisher.publish(version, key=control_key(version))
        trajectories = await read_trajectories(kafka, GROUPS)
        stop.set()
    assert {trajectory.status for trajectory in trajectories} == {"completed"}
    assert len({trajectory.trajectory_id for trajectory in trajectories}) == GROUPS
    for trajectory in trajectories:
        drawn = {(span.lineage, span.version) for sample in trajectory.samples for span in sample.version_spans}
        pin = pins[trajectory.group_index % len(pins)]
        if pin is not None:
            assert drawn == {(pin.lineage, pin.version)}
        elif kind == "lora":
            assert {lineage for lineage, _ in drawn} == {7}
        assert trajectory.attempt == 1


async def test_a_worker_says_whose_files_its_pinned_episodes_need(kafka: KafkaSettings, tmp_path: Path) -> None:
    first, *_ = policies(tmp_path, "full")
    slow = LatencyProfile(token_s=5.0)
    settings = RolloutWorkerSettings(engine=ScriptedSettings(latency=slow), worker_id="w", drain_s=0.0)
    stop = asyncio.Event()
    pinned = task(0, [pin_on(first)])
    consumer = await start_consumer(kafka)
    consumer.assign([TopicPartition(kafka.topic("control"), 0)])
    await consumer.seek_to_beginning()
    try:
        async with Publisher(kafka) as publisher, asyncio.TaskGroup() as group, asyncio.timeout(DEADLINE_S):
            partition = ids.group_partition(pinned.group_id, kafka.topics["tasks"].partitions)
            await publisher.publish(pinned, key=pinned.group_id, partition=partition)
            group.create_task(run_rollout_worker(settings, kafka, stop))
            held: list[tuple[int, int, str]] = []
            while not held:
                for record in [r for rs in (await consumer.getmany(timeout_ms=200)).values() for r in rs]:
                    if dict(record.headers)["schema"] == b"WorkerStatus":
                        status = decode_record(record, WorkerStatus)
                        held += [(h.lineage, h.version, h.manifest_sha256) for h in status.held_policies]
            stop.set()
    finally:
        await consumer.stop()
    assert set(held) == {(7, 1, first.manifest_sha256)}
