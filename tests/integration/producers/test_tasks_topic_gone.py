"""The `tasks` topic deleted or made anew under a producer is an error, at once and at the next start."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated)
# ruff: noqa: ASYNC110  -- a topic that goes announces itself to nobody; a test may write a small file

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from rollstream.producers.service import RunProgress, produce
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.control import TrainerProgress
from rollstream.schemas.errors import DataLossError, SettingsError
from rollstream.transport.clients import admin_client
from rollstream.transport.control import control_key
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics

pytestmark = pytest.mark.broker


def options(folder: Path, run_id: str = "run", **more: Any) -> ProducerSettings:
    path = folder / f"{run_id}.jsonl"
    path.write_text("".join(json.dumps({"question": f"{run_id} {n}?"}) + "\n" for n in range(40)))
    return ProducerSettings(source=str(path), run_id=run_id, group_size=2, topic_check_s=2.0, **more)


async def emit(settings: ProducerSettings, kafka: KafkaSettings, **more: Any) -> RunProgress:
    async with asyncio.timeout(60):
        return await produce(settings, kafka, asyncio.Event(), **more)


async def delete_topic(kafka: KafkaSettings, short: str = "tasks") -> None:
    topic = kafka.topic(short)
    async with admin_client(kafka) as admin, asyncio.timeout(30):
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():
            await asyncio.sleep(0.05)


async def limit(kafka: KafkaSettings, emit_limit: int) -> None:
    progress = TrainerProgress(
        trainer_id="t", lineage=0, version=0, groups_consumed=0, groups_dropped=0, emit_limit=emit_limit
    )
    async with Publisher(kafka) as publisher:
        await publisher.publish(progress, key=control_key(progress))


@pytest.mark.parametrize("what", ["tasks deleted", "tasks made anew", "control deleted"])
async def test_under_a_running_producer_it_is_an_error(kafka: KafkaSettings, tmp_path: Path, what: str) -> None:
    await limit(kafka, 10)
    waits = asyncio.Event()

    def notice(progress: RunProgress) -> None:
        if progress.state == "waiting_for_trainer" and progress.groups_done == 10:
            waits.set()

    async def spoil() -> None:
        await waits.wait()
        await delete_topic(kafka, what.split()[0])
        if what.endswith("anew"):
            await apply_topics(kafka)

    async with asyncio.TaskGroup() as group:
        group.create_task(spoil())
        with pytest.raises(DataLossError, match=r"was deleted|made anew"):
            await emit(options(tmp_path, is_paced=True), kafka, on_progress=notice)


async def test_between_two_starts_it_is_refused_even_if_the_new_topic_has_grown_as_far(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    await emit(options(tmp_path, is_paced=False), kafka)
    await delete_topic(kafka)
    await apply_topics(kafka)
    await emit(options(tmp_path, "another", is_paced=False, epochs=4), kafka)
    with pytest.raises(
        SettingsError, match=r"has sent \d+ tasks to .*tasks/\d, but it holds 0 of them and begins at 0"
    ):
        await emit(options(tmp_path, is_paced=False), kafka)
