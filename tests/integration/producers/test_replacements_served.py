"""A producer serves what a trainer wants replaced: each wish once, across restarts, also when all groups are sent."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from rollstream.producers.service import RunProgress, produce
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.control import BackfillWanted, ProducerProgress, TrainerProgress, WantedMember
from rollstream.schemas.ids import trajectory_id
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

ROWS, GROUP_SIZE = 6, 2


@pytest_asyncio.fixture
async def publisher(kafka: KafkaSettings) -> AsyncIterator[Publisher]:
    async with Publisher(kafka, profile="durable") as publisher:
        yield publisher


@pytest.fixture
def settings(tmp_path: Path) -> ProducerSettings:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"Question {n}?"}) + "\n" for n in range(ROWS)))
    return ProducerSettings(source=str(rows), run_id="run", group_size=GROUP_SIZE, is_shuffled=True)


class Trainer:
    """Says on `control` what a trainer says."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def wants(self, *members: tuple[int, int, int]) -> None:
        names = ("group_index", "member_index", "replacement")
        wanted = [WantedMember(**dict(zip(names, member, strict=True))) for member in members]
        message = BackfillWanted(run_id="run", members=wanted)
        await self._publisher.publish(message, key=control_key(message))

    async def says(self, *, closed: int, emit_limit: int | None) -> None:
        message = TrainerProgress(
            trainer_id="t", lineage=0, version=0, groups_consumed=closed, groups_dropped=0, emit_limit=emit_limit
        )
        await self._publisher.publish(message, key=control_key(message))


@pytest.fixture
def trainer(publisher: Publisher) -> Trainer:
    return Trainer(publisher)


class Running:
    """A producer in the background."""

    def __init__(self, settings: ProducerSettings, kafka: KafkaSettings, group: asyncio.TaskGroup) -> None:
        self._changed = asyncio.Event()
        self._now: RunProgress | None = None
        self.task = group.create_task(produce(settings, kafka, asyncio.Event(), self._note))

    def _note(self, progress: RunProgress) -> None:
        self._now = progress
        self._changed.set()

    async def until(self, condition: Callable[[RunProgress], bool]) -> None:
        async with asyncio.timeout(30):
            while self._now is None or not condition(self._now):
                self._changed.clear()
                await self._changed.wait()

    async def kill(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


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


async def replacements_in(kafka: KafkaSettings) -> list[tuple[int, int, int]]:
    tasks = [task for _, task in await tasks_in(kafka) if task.replacement]
    return sorted((task.group_index, task.member_index, task.replacement) for task in tasks)


async def test_a_wanted_replacement_is_the_members_task_under_an_id_of_its_own(
    settings: ProducerSettings, kafka: KafkaSettings, trainer: Trainer
) -> None:
    await trainer.says(closed=0, emit_limit=2)
    async with asyncio.TaskGroup() as group:
        running = Running(settings, kafka, group)
        await running.until(lambda run: (run.state, run.groups_done) == ("waiting_for_trainer", 2))
        await trainer.wants((1, 0, 1))
        await running.until(lambda run: run.replacements_sent == 1)
        await running.kill()
    tasks = await tasks_in(kafka)
    place, replacement = next((p, task) for p, task in tasks if task.replacement)
    first_place, first = next((p, t) for p, t in tasks if (t.group_index, t.member_index, t.replacement) == (1, 0, 0))
    assert replacement == msgspec.structs.replace(
        first, replacement=1, trajectory_id=trajectory_id("run", 1, 0, replacement=1)
    )
    assert place == first_place


async def test_each_wish_is_served_once_however_often_the_producer_is_killed(
    settings: ProducerSettings, kafka: KafkaSettings, trainer: Trainer
) -> None:
    await trainer.says(closed=0, emit_limit=3)
    wishes = [(0, 0, 1), (0, 1, 1), (2, 1, 2)]
    async with asyncio.TaskGroup() as group:
        for number in range(1, len(wishes) + 1):
            running = Running(settings, kafka, group)
            await running.until(lambda run: run.state == "waiting_for_trainer")
            await trainer.wants(*wishes[:number])
            await running.until(lambda run: run.replacements_sent == 1)
            await running.kill()
    assert await replacements_in(kafka) == wishes


async def test_a_run_that_is_sent_serves_until_the_trainer_has_closed_all_of_it(
    settings: ProducerSettings, kafka: KafkaSettings, trainer: Trainer
) -> None:
    await trainer.says(closed=0, emit_limit=None)
    await trainer.wants()
    async with asyncio.TaskGroup() as group:
        running = Running(settings, kafka, group)
        await running.until(lambda run: run.state == "serving_backfill")
        async with ControlFollower(kafka) as control:
            assert control.all(ProducerProgress)["producer/run"].is_finished
        await trainer.wants((5, 1, 1), (ROWS, 0, 1), (0, GROUP_SIZE, 1))
        await running.until(lambda run: run.replacements_sent == 1)
        await trainer.says(closed=ROWS, emit_limit=None)
    assert running.task.result().state == "finished"
    assert await replacements_in(kafka) == [(5, 1, 1)], "what the run does not have is not made up"
    again = await produce(settings.model_copy(update={"backfill_linger_s": 0.0}), kafka, asyncio.Event())
    assert (again.state, again.tasks_sent, again.replacements_sent) == ("finished", 0, 0)


async def test_a_run_that_ended_long_ago_serves_what_is_open_when_it_is_started_again(
    settings: ProducerSettings, kafka: KafkaSettings, trainer: Trainer
) -> None:
    done = await produce(settings, kafka, asyncio.Event())
    assert (done.state, done.replacements_sent) == ("finished", 0)
    await trainer.wants((0, 1, 1), (4, 0, 3))
    again = await produce(settings.model_copy(update={"backfill_linger_s": 0.0}), kafka, asyncio.Event())
    assert (again.state, again.tasks_sent, again.replacements_sent) == ("finished", 0, 2)
    assert await replacements_in(kafka) == [(0, 1, 1), (4, 0, 3)]
