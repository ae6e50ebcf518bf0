"""Records about to be deleted are an alarm; records deleted, and a topic deleted or made anew, are an error."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)
# ruff: noqa: ASYNC110  -- a topic that goes and a look of the stream announce themselves to nobody

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from rollstream.schemas.codec import encode
from rollstream.schemas.control import TrainerProgress
from rollstream.schemas.errors import DataLossError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.trainers.metrics import RETENTION_LEFT
from rollstream.transport.clients import admin_client, start_producer
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics, list_topics

pytestmark = pytest.mark.broker

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
HOUR_S = 3600.0
KEEP_S = 7 * 24 * HOUR_S


def groups_of(make: Make, numbers: Iterable[int], **facts: Any) -> list[Trajectory]:
    return [make(group, member, **facts) for group in numbers for member in range(2)]


@asynccontextmanager
async def asked(kafka: KafkaSettings) -> AsyncGenerator[AIOKafkaAdminClient]:
    async with admin_client(kafka) as admin:
        yield admin


async def delete_records(kafka: KafkaSettings, before: dict[int, int] | None = None) -> None:
    """Delete as retention would; by default all."""
    topic = kafka.topic("trajectories")
    offsets = before or {0: -1, 1: -1}
    async with asked(kafka) as admin:
        await admin.delete_records({TopicPartition(topic, p): RecordsToDelete(o) for p, o in offsets.items()})


async def make_anew(kafka: KafkaSettings) -> None:
    topic = kafka.topic("trajectories")
    async with asked(kafka) as admin, asyncio.timeout(30):
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():
            await asyncio.sleep(0.05)
    await apply_topics(kafka)


async def send_aged(kafka: KafkaSettings, trajectories: Iterable[Trajectory], age_s: float) -> None:
    producer = await start_producer(kafka)
    try:
        for trajectory in trajectories:
            record = encode(trajectory)
            await producer.send_and_wait(
                kafka.topic("trajectories"),
                record.value,
                key=trajectory.group_id.encode(),
                partition=0,
                headers=list(record.headers),
                timestamp_ms=int((time.time() - age_s) * 1000),
            )
    finally:
        await producer.stop()


async def keep_bytes(kafka: KafkaSettings, size_bytes: int) -> None:
    topic = kafka.topic("trajectories")
    config = next(dict(state.config) for state in await list_topics(kafka) if state.name == topic)
    wanted = {name: config[name] for name in ("cleanup.policy", "retention.ms", "max.message.bytes")}
    async with asked(kafka) as admin:
        resource = ConfigResource(
            ConfigResourceType.TOPIC, topic, configs=wanted | {"retention.bytes": str(size_bytes)}
        )
        await admin.alter_configs([resource])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def batch_of(stream: AsyncTrajectoryStream) -> list[int]:
    async with asyncio.timeout(30):
        return [group.group_index for group in (await anext(stream)).groups]


async def test_unread_trajectories_that_grow_old_are_an_alarm_before_they_are_deleted(
    kafka: KafkaSettings, make_trajectory: Make, caplog: pytest.LogCaptureFixture
) -> None:
    await send_aged(kafka, groups_of(make_trajectory, range(3)), age_s=KEEP_S * 0.9)
    options: dict[str, Any] = {"groups_per_batch": 1, "trainer_id": "aged", "retention_check_s": 0.5}
    async with AsyncTrajectoryStream(kafka, **options) as stream:
        assert stream.stats().retention_left is None, "nobody has looked yet"
        await batch_of(stream)
        await until(lambda: stream.stats().retention_left is not None)
        assert stream.stats().retention_left == pytest.approx(0.1, abs=0.01)
        await until(lambda: "of the retention is left before unread trajectories are deleted" in caplog.text)
        assert " h old of 168.0 h kept and has about 0 MiB" in caplog.text
        assert RETENTION_LEFT.labels("aged")._value.get() == pytest.approx(0.1, abs=0.01)  # pyright: ignore[reportPrivateUsage]
        await batch_of(stream)
        await batch_of(stream)
        await until(lambda: stream.stats().retention_left is None)
    assert caplog.text.count("of the retention is left") == 1, "said once, not at every look"


async def test_the_newest_checkpoint_is_watched_too(kafka: KafkaSettings, make_trajectory: Make) -> None:
    await send_aged(kafka, groups_of(make_trajectory, range(2)), age_s=KEEP_S * 0.5)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, retention_check_s=0.5) as stream:
        await batch_of(stream)
        stream.state_dict()
        await batch_of(stream)
        await until(lambda: stream.stats().retention_left is not None)
        assert stream.stats().retention_left == pytest.approx(0.5, abs=0.01), "it would read group 1 again"
        stream.state_dict()
        await until(lambda: stream.stats().retention_left is None)


async def test_unread_trajectories_that_fill_the_partition_are_an_alarm(
    kafka: KafkaSettings, make_trajectory: Make, caplog: pytest.LogCaptureFixture
) -> None:
    await send_aged(kafka, groups_of(make_trajectory, range(40), tokens=1000), age_s=0)
    total_bytes = sum(len(encode(t).value) for t in groups_of(make_trajectory, range(40), tokens=1000))
    await keep_bytes(kafka, int(total_bytes * 1.1))
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, retention_check_s=0.5) as stream:
        await batch_of(stream)
        await until(lambda: "has about" in caplog.text)
        left = stream.stats().retention_left
        assert left is not None
        assert 0.02 < left < 0.2


async def test_fresh_data_raise_no_alarm(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    await send(groups_of(make_trajectory, range(4)))
    with caplog.at_level(logging.WARNING, logger="rollstream"):
        async with AsyncTrajectoryStream(kafka, groups_per_batch=1, retention_check_s=0.5) as stream:
            await batch_of(stream)
            await until(lambda: stream.stats().retention_left is not None)
            assert stream.stats().retention_left == pytest.approx(1.0, abs=0.01)
    assert "retention" not in caplog.text
    assert "begins at offsets" not in caplog.text


async def test_records_deleted_while_a_trainer_reads_are_an_error_that_stays(
    kafka: KafkaSettings, make_trajectory: Make, send: Send
) -> None:
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, timeout_s=20) as stream:
        await send(groups_of(make_trajectory, range(2)))
        await batch_of(stream)
        await batch_of(stream)
        stopped = stream.state_dict()
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, timeout_s=20) as stream:
        stream.load_state_dict(stopped)
        await stream._begin()  # pyright: ignore[reportPrivateUsage]  -- positions are checked, nothing is fetched yet
        await send(groups_of(make_trajectory, range(2, 6)))
        await delete_records(kafka)
        for _ in range(2):
            with pytest.raises(DataLossError, match="is needed, but the log reaches from"):
                await batch_of(stream)


async def test_what_is_fetched_already_is_trained_on_although_it_is_deleted(
    kafka: KafkaSettings, make_trajectory: Make, send: Send
) -> None:
    await send(groups_of(make_trajectory, range(6)))
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, retention_check_s=0.5) as stream:
        seen = await batch_of(stream)
        state = stream.state_dict()
        await delete_records(kafka)
        for _ in range(5):
            seen += await batch_of(stream)
        assert sorted(seen) == [0, 1, 2, 3, 4, 5]
        await until(lambda: stream.stats().retention_left == 0.0)
        await send(groups_of(make_trajectory, [6]))
        assert await batch_of(stream) == [6]
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        stream.load_state_dict(state)
        with pytest.raises(DataLossError, match="start without the checkpoint and accept the loss"):
            await batch_of(stream)


async def test_a_fresh_trainer_says_that_the_log_has_lost_its_beginning(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    await send_aged(kafka, groups_of(make_trajectory, range(2)), age_s=0)
    await delete_records(kafka, {0: 3})
    await send(groups_of(make_trajectory, [5]))
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        assert await batch_of(stream) == [5]
    assert "begins at offsets {0: 3}: older trajectories are deleted" in caplog.text


@pytest.mark.parametrize(
    ("short", "said"), [("trajectories", "was deleted while it was read"), ("control", "would hear nothing any more")]
)
async def test_a_topic_deleted_under_a_trainer_is_an_error(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, short: str, said: str
) -> None:
    await send(groups_of(make_trajectory, [0]))
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, retention_check_s=3.0, timeout_s=60) as stream:
        await batch_of(stream)
        waiting = asyncio.create_task(batch_of(stream))
        async with ControlFollower(kafka) as control, asyncio.timeout(20):
            while (progress := control.latest(TrainerProgress)) is None or progress[0].groups_consumed == 0:
                await control.wait_for_change(timeout_s=5)
        async with asked(kafka) as admin:
            await admin.delete_topics([kafka.topic(short)])
        with pytest.raises(DataLossError, match=said):
            await waiting


@pytest.mark.parametrize("groups", [0, 1, 9], ids=["empty", "shorter", "longer"])
async def test_a_topic_made_anew_is_not_taken_for_the_one_of_the_checkpoint(
    kafka: KafkaSettings, make_trajectory: Make, groups: int
) -> None:
    await send_aged(kafka, groups_of(make_trajectory, range(3)), age_s=60)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=3) as stream:
        await batch_of(stream)
        state = json.loads(json.dumps(stream.state_dict()))
    await make_anew(kafka)
    await send_aged(kafka, groups_of(make_trajectory, range(10, 10 + groups)), age_s=0)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        stream.load_state_dict(state)
        with pytest.raises(DataLossError, match="made anew"):
            await batch_of(stream)


async def test_a_topic_made_anew_under_a_running_trainer_is_an_error(
    kafka: KafkaSettings, make_trajectory: Make
) -> None:
    await send_aged(kafka, groups_of(make_trajectory, range(3)), age_s=0)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=3, retention_check_s=3.0, timeout_s=60) as stream:
        await batch_of(stream)
        await make_anew(kafka)
        with pytest.raises(DataLossError, match=r"made anew|was deleted"):
            await batch_of(stream)
