"""Several producers under one limit on a real broker: together exactly as many groups as the trainer allows."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from rollstream.producers.emit_claims import CLAIM_GROUPS, claim_of
from rollstream.producers.service import RunProgress, produce
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.control import ProducerProgress, TrainerProgress
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

RUNS = ("algebra", "code", "search")
ROWS = 40


class Producers:
    """Three runs in this process, and how far they are together; never past the limit."""

    def __init__(self, kafka: KafkaSettings, publisher: Publisher, folder: Path, group: asyncio.TaskGroup) -> None:
        self._kafka, self._publisher, self._folder, self._group = kafka, publisher, folder, group
        self._changed = asyncio.Event()
        self.limit = 0
        self.done: dict[str, int] = {}
        self.running: dict[str, asyncio.Task[None]] = {}

    async def allow(self, limit: int) -> None:
        self.limit = limit
        message = TrainerProgress(
            trainer_id="t", lineage=0, version=0, groups_consumed=limit, groups_dropped=0, emit_limit=limit
        )
        await self._publisher.publish(message, key=control_key(message))

    def start(self, run_id: str, *, is_train: bool = True) -> None:
        rows = self._folder / f"{run_id}.jsonl"
        rows.write_text("".join(json.dumps({"question": f"{run_id} {n}"}) + "\n" for n in range(ROWS)))
        settings = ProducerSettings(source=str(rows), run_id=run_id, group_size=2, is_train=is_train)
        self.running[run_id] = self._group.create_task(self._run(settings))

    async def kill(self, run_id: str) -> None:
        self.running[run_id].cancel()
        with suppress(asyncio.CancelledError):
            await self.running[run_id]

    async def _run(self, settings: ProducerSettings) -> None:
        def note(progress: RunProgress) -> None:
            if settings.is_train:
                self.done[settings.run_id] = max(progress.groups_done, self.done.get(settings.run_id, 0))
                assert sum(self.done.values()) <= self.limit
            self._changed.set()

        await produce(settings, self._kafka, asyncio.Event(), note)

    async def until_all_wait(self, control: ControlFollower) -> None:
        """Until each run has a claim in the queue, so that who is slower to ask is not who gets less."""
        async with asyncio.timeout(30):
            while True:
                claims = [claim_of(progress, offset) for progress, offset in control.placed(ProducerProgress)]
                if {claim.run_id for claim in claims if claim.end > self.done.get(claim.run_id, 0)} >= set(RUNS):
                    return
                await control.wait_for_change(30)

    async def until(self, groups: int) -> None:
        async with asyncio.timeout(30):
            while sum(self.done.values()) < groups:
                self._changed.clear()
                await self._changed.wait()


@pytest_asyncio.fixture
async def publisher(kafka: KafkaSettings) -> AsyncIterator[Publisher]:
    async with Publisher(kafka, profile="durable") as publisher:
        yield publisher


async def groups_in_topic(kafka: KafkaSettings) -> Counter[str]:
    """Groups per training run of which at least one task is there."""
    consumer = await start_consumer(kafka, kafka.topic("tasks"))
    groups: set[tuple[str, int]] = set()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(p) < end for p, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                tasks = [decode_record(record, RolloutTask) for record in records]
                groups |= {(task.run_id, task.group_index) for task in tasks if task.is_train}
    finally:
        await stop_consumer(consumer)
    return Counter(run for run, _ in groups)


async def test_three_producers_emit_exactly_what_a_slowly_rising_limit_allows_in_turns(
    kafka: KafkaSettings, publisher: Publisher, tmp_path: Path
) -> None:
    async with ControlFollower(kafka) as control, asyncio.TaskGroup() as group:
        producers = Producers(kafka, publisher, tmp_path, group)
        await producers.allow(0)
        for run in RUNS:
            producers.start(run)
        producers.start("evaluation", is_train=False)
        for limit in (1, 3, 4, 8, 11, 15, 16, 20, 24):
            await producers.until_all_wait(control)
            await producers.allow(limit)
            await producers.until(limit)
            assert sum((await groups_in_topic(kafka)).values()) == limit
        for run in RUNS:
            await producers.kill(run)
    found = await groups_in_topic(kafka)
    assert max(found.values()) - min(found.values()) <= 2 * CLAIM_GROUPS


async def test_a_producer_killed_with_places_in_hand_takes_them_up_again_and_holds_up_nobody_else(
    kafka: KafkaSettings, publisher: Publisher, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        producers = Producers(kafka, publisher, tmp_path, group)
        await producers.allow(2)
        producers.start("algebra")
        await producers.until(2)
        await producers.kill("algebra")
        producers.start("code")
        await producers.allow(10)
        await producers.until(8)
        assert producers.done == {"algebra": 2, "code": 6}, "four places are claimed by the run that is away"
        producers.start("algebra")
        await producers.until(10)
        assert producers.done == {"algebra": 4, "code": 6}
        for run in ("algebra", "code"):
            await producers.kill(run)
    assert await groups_in_topic(kafka) == {"algebra": 4, "code": 6}
    async with ControlFollower(kafka) as control:
        progress = control.all(ProducerProgress)["producer/algebra"]
    assert progress.groups_reserved >= 4
