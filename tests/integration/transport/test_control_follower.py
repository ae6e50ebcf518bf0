"""The control follower on a real broker."""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rollstream.schemas.control import ControlMessage, Pause, PolicyVersion, TrainerStart, WorkerStatus
from rollstream.schemas.errors import SettingsError
from rollstream.transport.clients import start_producer
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.dead_letter_box.log import read_box
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics

pytestmark = pytest.mark.broker

DEADLINE_S = 20.0


def status(worker_id: str, running: int) -> WorkerStatus:
    return WorkerStatus(worker_id=worker_id, role="tool-worker", state="running", running=running)


async def say(publisher: Publisher, *messages: ControlMessage) -> list[int]:
    return [(await publisher.publish(message, key=control_key(message))).offset for message in messages]


async def garbage(kafka: KafkaSettings) -> None:
    producer = await start_producer(kafka)
    topic = kafka.topic("control")
    try:
        for value, headers in [
            (b"\xff\x00garbage", []),
            (b"", [("schema", b"Pause")]),
            (b"\xc1", [("schema", b"Pause"), ("schema_version", b"1")]),
            (b"\x80", [("schema", b"\xff\xfe"), ("schema_version", b"1")]),
            (b"\x80", [("schema", b"Tomorrow"), ("schema_version", b"1")]),
            (b"\x80", [("schema", b"Pause"), ("schema_version", b"99")]),
        ]:
            await producer.send_and_wait(topic, value, key=b"\xff", headers=headers)
    finally:
        await producer.stop()


async def until_told(follower: ControlFollower, worker: str, running: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while follower.all(WorkerStatus).get(f"worker/{worker}") != status(worker, running):
            await follower.wait_for_change(DEADLINE_S)


async def test_a_follower_knows_which_records_it_has_read(kafka: KafkaSettings) -> None:
    async with Publisher(kafka) as publisher:
        before = (await say(publisher, status("w", 1)))[0]
        async with ControlFollower(kafka) as follower:
            assert follower.has_read(before)
            assert not follower.has_read(before + 1)
            [*_, last] = await say(publisher, *(status("w", running) for running in range(2, 6)))
            async with asyncio.timeout(DEADLINE_S):
                while not follower.has_read(last):
                    await follower.wait_for_change(DEADLINE_S)
            assert follower.placed(WorkerStatus) == [(status("w", 5), last)]


async def test_everything_said_before_is_known_on_entering(kafka: KafkaSettings) -> None:
    policy = PolicyVersion(version=3, lineage=0, uri="/p", manifest_sha256="0")
    async with Publisher(kafka) as publisher:
        offsets = await say(publisher, TrainerStart(trainer_id="t"), policy, status("a", 1), status("a", 2))

    async with ControlFollower(kafka) as follower:
        assert follower.latest(TrainerStart) == (TrainerStart(trainer_id="t"), offsets[0])
        assert follower.latest(PolicyVersion) == (policy, offsets[1])
        assert follower.all(WorkerStatus) == {"worker/a": status("a", 2)}
        assert follower.latest(Pause) is None


async def test_what_is_said_later_is_heard_by_everyone_who_waits(kafka: KafkaSettings) -> None:
    async with Publisher(kafka) as publisher, ControlFollower(kafka) as follower, asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(until_told(follower, "a", 1))
        await say(publisher, status("a", 1))


async def test_a_change_between_two_waits_is_not_missed(kafka: KafkaSettings) -> None:
    async with Publisher(kafka) as publisher, ControlFollower(kafka) as follower:
        await say(publisher, status("a", 1))
        await until_told(follower, "a", 1)
        await say(publisher, status("a", 2))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(until_told(follower, "a", 2))

        assert await follower.wait_for_change(timeout_s=0)
        assert not await follower.wait_for_change(timeout_s=0.05)


async def test_garbage_and_tombstones_do_not_stop_it(kafka: KafkaSettings) -> None:
    async with Publisher(kafka) as publisher:
        await say(publisher, status("a", 1))
        await garbage(kafka)
        async with ControlFollower(kafka) as follower:
            assert follower.all(WorkerStatus) == {"worker/a": status("a", 1)}

            await garbage(kafka)
            producer = await start_producer(kafka)
            await producer.send_and_wait(kafka.topic("control"), None, key=b"worker/a")
            await producer.stop()
            await say(publisher, status("b", 1))
            await until_told(follower, "b", 1)

            assert follower.all(WorkerStatus) == {"worker/b": status("b", 1)}


async def test_an_error_of_the_owner_comes_out_as_it_is(kafka: KafkaSettings) -> None:
    with pytest.raises(ZeroDivisionError):
        async with ControlFollower(kafka):
            raise ZeroDivisionError


async def test_a_missing_topic_is_named_with_the_remedy(broker: str) -> None:
    kafka = KafkaSettings(bootstrap=broker, prefix="never-made.")
    with pytest.raises(SettingsError, match=r"never-made.control.*rollstream topics apply"):
        async with ControlFollower(kafka):
            pass


async def test_it_goes_on_after_the_broker_was_killed(tmp_path: Path) -> None:
    with LocalBroker(BrokerSettings(data_dir=tmp_path / "broker", source="jars")) as broker:
        kafka = KafkaSettings(bootstrap=broker.bootstrap)
        await apply_topics(kafka)
        async with Publisher(kafka) as publisher, ControlFollower(kafka) as follower:
            await say(publisher, status("a", 1))
            await until_told(follower, "a", 1)
            await asyncio.to_thread(broker.kill9)
            await follower.wait_for_change(timeout_s=0.05)  # perhaps of what was told, if it was known before the wait
            assert not await follower.wait_for_change(timeout_s=0.05)
            assert follower.all(WorkerStatus) == {"worker/a": status("a", 1)}
            await asyncio.to_thread(broker.start)
            await say(publisher, status("a", 2))
            await until_told(follower, "a", 2)


async def test_a_fact_under_the_key_of_another_replaces_nothing(kafka: KafkaSettings) -> None:
    policy = PolicyVersion(version=3, lineage=1, uri="p/3", manifest_sha256="0" * 64)
    intruder = WorkerStatus(worker_id="a", role="tool-worker", state="running")
    end = Pause(is_paused=True)
    async with Publisher(kafka) as publisher, ControlFollower(kafka) as follower:
        await publisher.publish(policy, key=control_key(policy))
        await publisher.publish(intruder, key=control_key(policy))
        await publisher.publish(end, key=control_key(end))
        while follower.latest(Pause) is None:
            assert await follower.wait_for_change(timeout_s=20)

        assert follower.latest(PolicyVersion) == (policy, 0)
        assert follower.all(WorkerStatus) == {}


async def test_what_is_no_fact_is_buried_once_for_each_key_and_the_following_goes_on(kafka: KafkaSettings) -> None:
    office = DeadLetterOffice(kafka, role="trainer", worker_id="t")
    async with Publisher(kafka) as publisher, office:
        await garbage(kafka)
        async with ControlFollower(kafka, dead_letters=office) as follower:
            await garbage(kafka)
            misplaced = await publisher.publish(status("a", 9), key="worker/b")
            await say(publisher, status("a", 1))
            await until_told(follower, "a", 1)
            async with asyncio.timeout(DEADLINE_S):
                while len(letters := (await read_box(kafka)).wanted(["open"])) < 2:
                    pass
    assert {(each.id.offset, each.head.key, each.head.role) for each in letters} == {
        (0, b"\xff", "trainer"),
        (misplaced.offset, b"worker/b", "trainer"),
    }
