"""Replaying letters on a real broker: what is sent, what becomes of it, and that repeating it changes nothing."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import numpy as np
import pytest
from aiokafka import ConsumerRecord

from rollstream.rollout_workers.agents import agent
from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.episode import Episode
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas import ids
from rollstream.schemas.codec import encode
from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.errors import TransientError
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.control import ControlFollower
from rollstream.transport.dead_letter_box.desk import DeadLetterDesk
from rollstream.transport.dead_letter_box.letters import DeadLetterBox, LetterId
from rollstream.transport.dead_letter_box.log import read_box
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

Call = Callable[..., Awaitable[Any]]
GROUP_SIZE = 4
LATE_AGENT = "agent-that-is-installed-later"


def task(group_index: int, member_index: int, agent_name: str = "react") -> RolloutTask:
    return RolloutTask(
        run_id="run",
        group_id=ids.group_id("run", group_index),
        group_index=group_index,
        group_size=GROUP_SIZE,
        member_index=member_index,
        trajectory_id=ids.trajectory_id("run", group_index, member_index),
        messages=[ChatMessage(role="user", content=f"What is the time in city {group_index}?")],
        agent=agent_name,
    )


async def records_of(kafka: KafkaSettings, short: str) -> list[Record]:
    """Everything a topic holds now."""
    consumer = await start_consumer(kafka, kafka.topic(short))
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        found: list[Record] = []
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found
    finally:
        await stop_consumer(consumer)


async def tasks_in(kafka: KafkaSettings) -> list[RolloutTask]:
    return [decode_record(record, RolloutTask) for record in await records_of(kafka, "tasks")]


async def bury(kafka: KafkaSettings, short: str, messages: Sequence[Message]) -> list[LetterId]:
    """Letters for records that lie nowhere."""
    async with DeadLetterOffice(kafka, role="r", worker_id="w") as office, asyncio.TaskGroup() as group:
        for offset, message in enumerate(messages):
            encoded = encode(message)
            record: Record = ConsumerRecord(
                topic=kafka.topic(short), partition=1, offset=offset, timestamp=0, timestamp_type=0, key=b"k",
                value=encoded.value, checksum=None, serialized_key_size=1, serialized_value_size=1,
                headers=encoded.headers,
            )  # fmt: skip
            group.create_task(office.bury(record, ValueError("x")))
    return [LetterId(kafka.topic(short), 1, offset) for offset in range(len(messages))]


@asynccontextmanager
async def worker(kafka: KafkaSettings) -> AsyncGenerator[None]:
    stop = asyncio.Event()
    settings = RolloutWorkerSettings(engine=ScriptedSettings(), worker_id="w0", drain_s=5)
    async with asyncio.TaskGroup() as group:
        group.create_task(run_rollout_worker(settings, kafka, stop))
        yield
        stop.set()


async def until_ended(kafka: KafkaSettings, count: int) -> dict[str, Trajectory]:
    """Trajectories by id, as soon as there are so many."""
    async with asyncio.timeout(60):
        while True:
            found = [decode_record(record, Trajectory) for record in await records_of(kafka, "trajectories")]
            if len(by_id := {each.trajectory_id: each for each in found}) >= count:
                return by_id


async def test_failed_tasks_that_are_replayed_end_as_new_trajectories_and_are_trained_on_as_groups(
    kafka: KafkaSettings, dead_letters: Call
) -> None:
    wanted = [task(0, 1, LATE_AGENT), task(0, 3, LATE_AGENT), task(1, 2, LATE_AGENT), task(1, 0)]
    async with Publisher(kafka) as publisher:
        for each in wanted:
            await publisher.publish(each, key=each.group_id, partition=0)
    async with worker(kafka):
        first = await until_ended(kafka, 4)
        async with asyncio.timeout(30):
            while len((await read_box(kafka)).wanted(["open"])) < 3:
                pass
        assert Counter(each.status for each in first.values()) == {"failed": 3, "completed": 1}
        [about] = [each for each in (await read_box(kafka)).wanted(["open"]) if each.id.offset == 0]
        shown = (await dead_letters("show", about.id.short(kafka.prefix))).output
        assert "DataError" in shown
        assert "find_agent" in shown, "the stack leads to the cause"
        assert about.head.attempts == 2

        agent(LATE_AGENT)(one_turn)
        replayed = await dead_letters("replay", "--topic", "tasks", "--yes")
        assert replayed.exit_code == 0, replayed.output
        assert "3 letters replayed, 0 refused" in replayed.output
        every = await until_ended(kafka, 7)
        again = await dead_letters("replay", "--topic", "tasks", "--yes")
        assert "0 letters replayed, 0 refused" in again.output
        assert "is replayed already" in (await dead_letters("replay", about.id.short(kafka.prefix))).output
        assert len(await tasks_in(kafka)) == 7

    new = {id_: each for id_, each in every.items() if id_ not in first}
    assert {each.status for each in new.values()} == {"completed"}
    origins = {each.extra["replay_of"]["trajectory_id"] for each in new.values()}
    assert origins == {each.trajectory_id for each in wanted[:3]}
    runs = Counter(each.run_id for each in new.values())
    assert sorted(runs.values()) == [1, 2]
    pair = runs.most_common(1)[0][0]
    async with AsyncTrajectoryStream(kafka, run_id=pair, groups_per_batch=1, needs_reward=False) as stream:
        [batch] = [batch async for batch in stream]
    [group] = batch.groups
    assert (group.group_size, len(group.trajectories)) == (2, 2)


async def one_turn(episode: Episode) -> None:
    await episode.generate()


class KilledError(Exception):
    """Stands for kill -9."""


class DyingDesk(DeadLetterDesk):
    """Ends at one step of a replay."""

    def __init__(self, kafka: KafkaSettings, box: DeadLetterBox, dies_before: str, dies_after_tasks: int = 0) -> None:
        super().__init__(kafka, box)
        self._dies_before = dies_before
        self._dies_after_tasks = dies_after_tasks

    async def _send_all(self, tasks: Sequence[RolloutTask], partitions: int) -> None:
        if self._dies_before == "tasks":
            await super()._send_all(tasks[: self._dies_after_tasks], partitions)
            raise KilledError
        await super()._send_all(tasks, partitions)

    async def _resolve(self, state: Literal["dropped", "replayed"], letters: Sequence[LetterId]) -> None:
        if self._dies_before == "resolution":
            raise KilledError
        await super()._resolve(state, letters)


@pytest.mark.parametrize(("dies_before", "dies_after_tasks"), [("tasks", 0), ("tasks", 3), ("resolution", 0)])
async def test_a_replay_that_was_killed_is_completed_by_the_next_whatever_that_one_selects(
    kafka: KafkaSettings, dead_letters: Call, dies_before: str, dies_after_tasks: int
) -> None:
    letters = await bury(kafka, "tasks", [task(group, member) for group in range(3) for member in range(2)])
    box = await read_box(kafka)
    async with DyingDesk(kafka, box, dies_before, dies_after_tasks) as desk:
        with pytest.raises(KilledError):
            await desk.replay(await desk.offer(box.wanted(["open"])))
    box = await read_box(kafka)
    assert {box.state(letter) for letter in letters} == {"replaying"}
    assert (await dead_letters("drop", letters[0].short(kafka.prefix))).output.endswith("nothing to drop\n")
    await bury(kafka, "tasks", [*[task(group, member) for group in range(3) for member in range(2)], task(0, 2)])

    completed = await dead_letters("replay", letters[4].short(kafka.prefix), "--yes")

    assert "6 tasks in 3 groups of 2" in completed.output
    assert "begun at" in completed.output
    sent = await tasks_in(kafka)
    assert {each.trajectory_id for each in sent} == {
        ids.trajectory_id(sent[0].run_id, group, member) for group in range(3) for member in range(2)
    }
    assert len({encode(each).value for each in sent}) == 6, "copies are equal to the last byte"
    box = await read_box(kafka)
    assert {box.state(letter) for letter in letters} == {"replayed"}
    assert box.counts()["open"] == 1
    assert "0 letters replayed" in (await dead_letters("replay", "--grep", "city 1")).output
    assert await announced(kafka) == {sent[0].run_id: (3, 2, True)}


async def announced(kafka: KafkaSettings) -> dict[str, tuple[int, int, bool]]:
    async with ControlFollower(kafka) as control:
        return {
            p.run_id: (p.groups_emitted, p.group_size, p.is_finished) for p in control.all(ProducerProgress).values()
        }


async def test_a_process_killed_in_the_middle_leaves_nothing_undone_and_nothing_done_twice(
    kafka: KafkaSettings, dead_letters: Call
) -> None:
    letters = await bury(kafka, "tasks", [task(group, member) for group in range(100) for member in range(4)])
    for sent_before_kill in (1, 150, 300):
        process = await start_replay(kafka)
        async with asyncio.timeout(60):
            while process.returncode is None and len(await records_of(kafka, "tasks")) < sent_before_kill:
                pass
        if process.returncode is None:
            process.kill()
        await process.communicate()
    assert (await dead_letters("replay", "--topic", "tasks", "--yes")).exit_code == 0

    sent = await tasks_in(kafka)
    assert len({each.trajectory_id for each in sent}) == len({encode(each).value for each in sent}) == 400
    assert Counter(Counter(each.group_id for each in {t.trajectory_id: t for t in sent}.values()).values()) == {4: 100}
    box = await read_box(kafka)
    assert {box.state(letter) for letter in letters} == {"replayed"}
    assert len(await announced(kafka)) == 1


async def start_replay(kafka: KafkaSettings) -> asyncio.subprocess.Process:
    arguments = ("dead-letters", "replay", "--all", "--yes", "--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rollstream.cli.main", *arguments),
        env={**os.environ, "ROLLSTREAM_KAFKA__PARTITIONS": json.dumps(dict(kafka.partitions))},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_of_two_replays_at_once_one_plan_holds_for_each_letter(kafka: KafkaSettings) -> None:
    letters = await bury(kafka, "tasks", [task(0, member) for member in range(3)])
    box, other = await read_box(kafka), await read_box(kafka)
    async with DeadLetterDesk(kafka, box) as desk, DeadLetterDesk(kafka, other) as rival:
        all_three = await desk.offer(box.wanted(["open"]))
        two = await rival.offer([each for each in other.wanted(["open"]) if each.id in letters[:2]])
        same = await rival.offer(other.wanted(["open"]))
        await desk.replay(all_three)
        with pytest.raises(TransientError, match="another replay has taken"):
            await rival.replay(two)
        await rival.replay(same)
    sent = await tasks_in(kafka)
    assert len({each.trajectory_id for each in sent}) == 3
    assert {each.group_size for each in sent} == {3}


def trajectory() -> Trajectory:
    sample = Sample(
        prompt_ids=np.ones(1, np.int32),
        response_ids=np.ones(1, np.int32),
        response_mask=np.ones(1, np.uint8),
        response_logprobs=np.zeros(1, np.float32),
        version_spans=[VersionSpan(0, 1, 0)],
        turns=[],
    )
    return Trajectory(
        run_id="run", trajectory_id=ids.trajectory_id("run", 0, 0), group_id=ids.group_id("run", 0), group_index=0,
        group_size=1, member_index=0, status="completed", stop_reason="stop", samples=[sample], reward=1.0,
    )  # fmt: skip


async def test_a_trajectory_is_appended_again_byte_for_byte_and_trained_on_once(
    kafka: KafkaSettings, dead_letters: Call
) -> None:
    await bury(kafka, "trajectories", [trajectory()])
    box = await read_box(kafka)
    async with DyingDesk(kafka, box, "resolution") as desk:
        with pytest.raises(KilledError):
            await desk.replay(await desk.offer(box.wanted(["open"])))
    assert (await dead_letters("replay", "trajectories/1/0")).exit_code == 0

    copies = await records_of(kafka, "trajectories")
    original = encode(trajectory())
    assert [(c.partition, c.key, c.value, list(c.headers)) for c in copies] == [
        (1, b"k", original.value, original.headers)
    ] * 2
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, timeout_s=2.0) as stream:
        batch = await anext(stream)
        assert [each.trajectory_id for each in batch.trajectories()] == [trajectory().trajectory_id]
        with pytest.raises(TimeoutError):
            await anext(stream)


async def test_what_cannot_be_replayed_is_refused_by_name_and_the_rest_is_replayed(
    kafka: KafkaSettings, dead_letters: Call
) -> None:
    await bury(kafka, "tasks", [task(0, 0), trajectory()])
    await bury(kafka, "journal", [trajectory()])
    dry = await dead_letters("replay", "--all", "--dry-run")
    called = await dead_letters("replay", "--all", "--yes")

    assert dry.exit_code == called.exit_code == 1
    assert "nothing done (--dry-run), 2 refused" in dry.output
    assert "tasks/1/1 cannot be replayed: it still cannot be decoded" in called.output
    assert "journal/1/0 cannot be replayed: the order of the journal" in called.output
    assert "1 letters replayed, 2 refused" in called.output
    assert len(await tasks_in(kafka)) == 1
    box = await read_box(kafka)
    assert {each.id.short(kafka.prefix) for each in box.wanted(["open"])} == {"tasks/1/1", "journal/1/0"}


async def test_a_dropped_letter_can_be_replayed_by_name(kafka: KafkaSettings, dead_letters: Call) -> None:
    await bury(kafka, "tasks", [task(0, 0)])
    await dead_letters("drop", "tasks/1/0")
    assert "0 letters replayed" in (await dead_letters("replay", "--all")).output
    assert "1 letters replayed" in (await dead_letters("replay", "tasks/1/0")).output
    assert len(await tasks_in(kafka)) == 1
