"""The producer against a real broker: everything once, whatever happens in between, at the trainer's pace."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)
# ruff: noqa: ASYNC240  -- a test may read a small file

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rollstream.producers.service import RunProgress, produce
from rollstream.producers.settings import ProducerSettings
from rollstream.producers.task_log import read_task_log
from rollstream.schemas.control import Pause, ProducerProgress, TrainerProgress
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.ids import group_partition, trajectory_id
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import start_consumer
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

GROUP_SIZE = 4


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty questions in the form of grade-school word problems."""
    rows = [
        {
            "question": f"Ann has {n} apples and buys {n + 1} more. How many apples does she have?",
            "answer": f"{n} + {n + 1} = <<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1} apples.\n#### {2 * n + 1}",
        }
        for n in range(20)
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(data: Path, **changes: Any) -> ProducerSettings:
    values: dict[str, Any] = {
        "source": str(data),
        "run_id": "run",
        "answer_after": "####",
        "reward": "numeric",
        "group_size": GROUP_SIZE,
        "is_paced": False,
        **changes,
    }
    return ProducerSettings(**values)


async def emit(settings: ProducerSettings, kafka: KafkaSettings, **more: Any) -> RunProgress:
    async with asyncio.timeout(60):
        return await produce(settings, kafka, more.pop("stop", asyncio.Event()), **more)


async def all_tasks(kafka: KafkaSettings) -> list[tuple[int, RolloutTask]]:
    """Every task in the topic with its partition, in order within a partition."""
    consumer = await start_consumer(kafka, kafka.topic("tasks"))
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        found: list[tuple[int, RolloutTask]] = []
        while any([await consumer.position(p) < end for p, end in ends.items()]):
            for partition, records in (await consumer.getmany(timeout_ms=1000)).items():
                found += [(partition.partition, decode_record(record, RolloutTask)) for record in records]
        return found
    finally:
        await consumer.stop()


async def recorded(kafka: KafkaSettings) -> ProducerProgress:
    async with ControlFollower(kafka) as control:
        return control.all(ProducerProgress)["producer/run"]


async def test_every_row_becomes_one_whole_group_in_the_partition_of_its_id(data: Path, kafka: KafkaSettings) -> None:
    done = await emit(options(data), kafka)
    assert (done.state, done.groups_done, done.groups_total, done.tasks_sent) == ("finished", 20, 20, 80)
    tasks = await all_tasks(kafka)
    expected = {trajectory_id("run", group, member) for group in range(20) for member in range(GROUP_SIZE)}
    assert Counter(task.trajectory_id for _, task in tasks) == dict.fromkeys(expected, 1)
    assert all(partition == group_partition(task.group_id, 4) for partition, task in tasks)
    first = next(task for _, task in tasks if task.group_index == 0)
    assert first.reward is not None
    assert (first.messages[0].content.split()[0], first.reward.answer, first.data_index) == (
        "Ann", "1", "problems.jsonl:1",
    )  # fmt: skip
    progress = await recorded(kafka)
    assert (progress.groups_emitted, progress.group_size, progress.is_finished) == (20, GROUP_SIZE, True)


async def test_running_again_sends_nothing(data: Path, kafka: KafkaSettings) -> None:
    await emit(options(data), kafka)
    again = await emit(options(data), kafka)
    assert (again.state, again.groups_done, again.tasks_sent, again.tasks_found) == ("finished", 20, 0, 80)
    assert len(await all_tasks(kafka)) == 80


async def test_a_stopped_run_goes_on_where_it_stopped(data: Path, kafka: KafkaSettings) -> None:
    stop = asyncio.Event()

    def stop_after_five(progress: RunProgress) -> None:
        if progress.groups_done >= 5:
            stop.set()

    first = await emit(
        options(data, is_shuffled=True, max_groups_in_flight=1), kafka, stop=stop, on_progress=stop_after_five
    )
    assert first.state == "stopped"
    assert 5 <= first.groups_done < 20
    assert not (await recorded(kafka)).is_finished
    second = await emit(options(data, is_shuffled=True), kafka)
    assert second.tasks_sent == 80 - first.tasks_sent
    assert Counter(task.trajectory_id for _, task in await all_tasks(kafka)).most_common(1)[0][1] == 1


async def test_what_a_crash_left_half_sent_is_completed_and_not_repeated(data: Path, kafka: KafkaSettings) -> None:
    """Some members of later groups are in the topic, the recorded prefix knows nothing of them."""
    stop = asyncio.Event()
    stop.set()
    await emit(options(data), kafka, stop=stop)
    await emit_members(data, kafka, {(3, 1), (7, 0), (7, 1), (7, 2), (7, 3), (19, 2)})
    done = await emit(options(data), kafka)
    assert (done.tasks_found, done.tasks_sent) == (6, 74)
    assert len({task.trajectory_id for _, task in await all_tasks(kafka)}) == len(await all_tasks(kafka)) == 80


async def emit_members(data: Path, kafka: KafkaSettings, members: set[tuple[int, int]]) -> None:
    from rollstream.producers.run_plan import open_plan
    from rollstream.producers.task_building import Prompt, build_group

    plan = open_plan(options(data))
    async with Publisher(kafka, profile="durable") as publisher:
        for index, prompt in enumerate(plan.prompts()):
            assert isinstance(prompt, Prompt)
            for task in build_group(prompt, plan.settings, index, data_source=plan.data_source):
                if (index, task.member_index) in members:
                    await publisher.publish(task, key=task.group_id, partition=group_partition(task.group_id, 4))
    plan.source.close()


async def test_tasks_deleted_by_retention_are_not_sent_again(data: Path, kafka: KafkaSettings) -> None:
    from aiokafka import TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

    await emit(options(data), kafka)
    log = await read_task_log(kafka, "run")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_records(
            {
                TopicPartition(kafka.topic("tasks"), partition): RecordsToDelete(before_offset=end)
                for partition, end in enumerate(log.end_offsets)
            }
        )
    finally:
        await admin.close()
    again = await emit(options(data), kafka)
    assert (again.groups_done, again.tasks_sent, again.tasks_found) == (20, 0, 0)


@pytest.mark.parametrize("change", ["data", "options"])
async def test_the_same_run_never_mixes_two_choices(data: Path, kafka: KafkaSettings, change: str) -> None:
    await emit(options(data), kafka)
    if change == "data":
        data.write_text(data.read_text().replace("Ann", "Bob"))
        with pytest.raises(SettingsError, match="run 'run' was begun with other data;"):
            await emit(options(data), kafka)
    else:
        with pytest.raises(SettingsError, match="with other sampling, system_prompt;"):
            await emit(options(data, system_prompt="x", sampling={"temperature": 0.5}), kafka)
    assert len(await all_tasks(kafka)) == 80


async def test_a_finished_run_grows_by_more_epochs(data: Path, kafka: KafkaSettings) -> None:
    await emit(options(data), kafka)
    grown = await emit(options(data, epochs=2), kafka)
    assert (grown.groups_done, grown.tasks_sent) == (40, 80)
    assert (await recorded(kafka)).groups_emitted == 40


async def test_bad_rows_are_left_out_counted_and_written_down(data: Path, kafka: KafkaSettings, tmp_path: Path) -> None:
    lines = data.read_text().splitlines()
    lines[3], lines[8] = '{"question": null, "answer": "#### 1"}', "not json"
    data.write_text("\n".join(lines))
    with pytest.raises(SettingsError, match=r"problems\.jsonl:4: column 'question' is missing or null"):
        await emit(options(data), kafka)
    assert await all_tasks(kafka) == []
    rejects = tmp_path / "rejects.jsonl"
    done = await emit(options(data, on_bad_row="skip", rejects_path=rejects, epochs=2), kafka)
    assert (done.groups_done, done.groups_total, done.rows_rejected) == (36, 36, 4)
    written = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(row["place"], row["column"]) for row in written] == [
        ("problems.jsonl:4", "question"),
        ("problems.jsonl:9", None),
    ]
    assert {task.group_index for _, task in await all_tasks(kafka)} == set(range(36))


def trainer(emit_limit: int | None) -> TrainerProgress:
    return TrainerProgress(
        trainer_id="t", lineage=0, version=0, groups_consumed=0, groups_dropped=0, emit_limit=emit_limit
    )


class Watcher:
    """Remembers progress and lets a test wait for a state."""

    def __init__(self) -> None:
        self.seen: list[RunProgress] = []
        self._arrived = asyncio.Condition()
        self._notices: set[asyncio.Task[None]] = set()

    def __call__(self, progress: RunProgress) -> None:
        self.seen.append(progress)
        notice = asyncio.get_running_loop().create_task(self._notify())
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    async def _notify(self) -> None:
        async with self._arrived:
            self._arrived.notify_all()

    async def until(self, state: str, groups_done: int) -> None:
        async with asyncio.timeout(20), self._arrived:
            await self._arrived.wait_for(
                lambda: bool(self.seen) and (self.seen[-1].state, self.seen[-1].groups_done) == (state, groups_done)
            )


async def test_the_limit_of_the_trainer_and_a_pause_are_followed(data: Path, kafka: KafkaSettings) -> None:
    watcher = Watcher()
    async with Publisher(kafka, profile="durable") as publisher, asyncio.TaskGroup() as group:

        async def say(message: TrainerProgress | Pause | ProducerProgress) -> None:
            await publisher.publish(message, key=control_key(message))

        await say(ProducerProgress(run_id="other", groups_emitted=3, group_size=8))
        await say(ProducerProgress(run_id="evaluation", groups_emitted=100, group_size=8, is_train=False))
        running = group.create_task(emit(options(data, is_paced=True), kafka, on_progress=watcher))
        await watcher.until("waiting_for_trainer", 0)
        await say(trainer(8))
        await watcher.until("waiting_for_trainer", 5)
        await say(Pause(is_paused=True))
        await say(trainer(None))
        await watcher.until("paused", 5)
        assert len(await all_tasks(kafka)) == 5 * GROUP_SIZE
        await say(Pause(is_paused=False))
    assert running.result().state == "finished"
    assert len(await all_tasks(kafka)) == 80


async def test_a_paced_run_that_grows_is_not_finished_any_more(data: Path, kafka: KafkaSettings) -> None:
    watcher, stop = Watcher(), asyncio.Event()
    async with Publisher(kafka, profile="durable") as publisher, asyncio.TaskGroup() as group:
        await publisher.publish(trainer(20), key=control_key(trainer(20)))
        await emit(options(data, is_paced=True), kafka)
        assert (await recorded(kafka)).is_finished
        await publisher.publish(Pause(is_paused=True), key="pause")
        grown = emit(options(data, is_paced=True, epochs=2), kafka, on_progress=watcher, stop=stop)
        running = group.create_task(grown)
        await watcher.until("paused", 20)
        progress = await recorded(kafka)
        assert (progress.is_finished, progress.groups_emitted) == (False, 20)
        stop.set()
    assert running.result().state == "stopped"


async def test_a_rejects_file_that_cannot_be_written_stops_before_anything_is_sent(
    data: Path, kafka: KafkaSettings
) -> None:
    with pytest.raises(SettingsError, match="cannot write the rejects file"):
        await emit(options(data, on_bad_row="skip", rejects_path=data / "rejects.jsonl"), kafka)
    assert await all_tasks(kafka) == []


async def test_evaluation_does_not_wait_for_a_trainer(data: Path, kafka: KafkaSettings) -> None:
    done = await emit(options(data, is_paced=None, is_train=False), kafka)
    assert done.state == "finished"
    assert not any(task.is_train for _, task in await all_tasks(kafka))
    assert not (await recorded(kafka)).is_train


async def test_reading_what_is_there_takes_a_moment(data: Path, kafka: KafkaSettings) -> None:
    """Ten thousand tasks of the run, and as much of another that is only passed over."""
    rows = data.read_text() * 25
    data.write_text(rows)
    for run_id in ("other", "run"):
        done = await emit(options(data, run_id=run_id, group_size=20, max_groups_in_flight=64), kafka)
        assert done.tasks_sent == 10_000
    started = time.perf_counter()
    log = await read_task_log(kafka, "run")
    took_s = time.perf_counter() - started
    assert (len(log.task_ids), log.records_read) == (10_000, 20_000)
    assert took_s < 10
    again = await emit(options(data, run_id="run", group_size=20), kafka)
    assert (again.tasks_found, again.tasks_sent) == (10_000, 0)


GSM8K_PLACES = (os.environ.get("GSM8K_TEST_FILE"), "../shared/data/gsm8k/test.jsonl")
GSM8K = next((Path(place) for place in GSM8K_PLACES if place and Path(place).is_file()), None)


@pytest.mark.skipif(GSM8K is None, reason="needs the GSM8K test file: set GSM8K_TEST_FILE to its path")
async def test_the_whole_of_gsm8k_goes_in(kafka: KafkaSettings) -> None:
    assert GSM8K is not None
    done = await emit(options(GSM8K, group_size=8), kafka)
    assert (done.groups_done, done.tasks_sent) == (1319, 1319 * 8)
    log = await read_task_log(kafka, "run")
    assert len(log.task_ids) == log.records_read == 1319 * 8
