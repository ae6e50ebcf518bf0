"""The journal on a real broker: read back, taken over, cut off, and with rubbish in it."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import DataLossError
from rollstream.schemas.journal import JournalRecord, StartFacts
from rollstream.transport.clients import admin_client, start_consumer, start_producer
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.journal.keeper import JournalKeeper
from rollstream.transport.journal.owned_partition import OwnedPartition
from rollstream.transport.journal.task_state import PartitionLostError
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

DEADLINE_S = 30.0
START = msgspec.msgpack.encode(StartFacts(started_at=1.0))


@asynccontextmanager
async def keeper(kafka: KafkaSettings, *, accepts_data_loss: bool = False) -> AsyncGenerator[JournalKeeper]:
    """A running keeper, and at most half a minute for what is done with it."""
    async with (
        asyncio.timeout(DEADLINE_S),
        Publisher(kafka) as publisher,
        DeadLetterOffice(kafka, role="rollout-worker", worker_id="w") as office,
        JournalKeeper(kafka, publisher, office, accepts_data_loss=accepts_data_loss) as journal,
        asyncio.TaskGroup() as group,
    ):
        running = group.create_task(journal.run())
        yield journal
        running.cancel()


async def begin(journal: OwnedPartition, id_: str, task_offset: int = 0, writer: str = "w") -> int:
    """Start a task; returns the birth of its first attempt."""
    start = JournalRecord(
        kind="start", trajectory_id=id_, attempt=1, key=f"1/1/{writer}", writer=writer, task_offset=task_offset,
        payload=START,
    )  # fmt: skip
    return (await journal.append(start)).births[1]


def effect(id_: str, path: int, birth: int, payload: bytes = b"p") -> JournalRecord:
    return JournalRecord(
        kind="effect", trajectory_id=id_, attempt=1, key=str(path), writer="w", birth=birth, payload=payload
    )


async def run_task(journal: OwnedPartition, id_: str, task_offset: int, effects: int = 3) -> None:
    birth = await begin(journal, id_, task_offset)
    for path in range(effects):
        await journal.append(effect(id_, path, birth))


async def test_what_append_returned_for_is_what_every_later_owner_reads(kafka: KafkaSettings) -> None:
    async with keeper(kafka) as first:
        await first.prepare(2, None, "")
        async with asyncio.TaskGroup() as group:
            for n in range(40):
                group.create_task(run_task(first.of(2), f"t{n}", n))
        states = dict(first.of(2).fold.tasks)
        metadata = first.commit_metadata(2, 30)
    async with keeper(kafka) as second:
        await second.prepare(2, 0, metadata)
        assert {f"t{n}": states[f"t{n}"] for n in range(30, 40)}.items() <= second.of(2).fold.tasks.items()


async def test_of_two_that_believe_they_own_a_partition_both_go_on_with_the_first_record(kafka: KafkaSettings) -> None:
    async with keeper(kafka) as one, keeper(kafka) as two:
        await one.prepare(0, None, "")
        await two.prepare(0, None, "")
        birth = await begin(one.of(0), "t")
        await begin(two.of(0), "t", writer="v")
        rivals = ((one.of(0), b"1"), (two.of(0), b"2"))
        answers = await asyncio.gather(
            *(journal.append(effect("t", path, birth, name)) for path in range(20) for journal, name in rivals)
        )
        payloads = [state.effects[str(n // 2)].payload for n, state in enumerate(answers)]
    assert payloads[0::2] == payloads[1::2]


async def test_partitions_that_come_and_go_are_read_without_a_gap(kafka: KafkaSettings) -> None:
    async with keeper(kafka) as journal:
        for partition in range(3):
            await journal.prepare(partition, None, "")
        async with asyncio.TaskGroup() as group:
            for n in range(30):
                group.create_task(run_task(journal.of(0), f"t{n}", n))
            for _ in range(5):
                await journal.prepare(1, None, "")
                journal.release(2)
                await journal.prepare(2, None, "")
        before = dict(journal.of(0).fold.tasks)
        journal.release(0)
        await journal.prepare(0, None, "")
        assert journal.of(0).fold.tasks == before


async def test_whoever_waits_for_a_partition_that_leaves_hears_of_it(kafka: KafkaSettings) -> None:
    async with keeper(kafka) as journal:
        await journal.prepare(0, None, "")
        owned = journal.of(0)
        waiting = asyncio.ensure_future(owned.read_past(10))
        await asyncio.sleep(0)
        journal.release(0)
        with pytest.raises(PartitionLostError):
            await waiting
        with pytest.raises(PartitionLostError):
            await begin(owned, "t")


async def test_rubbish_in_the_journal_is_buried_and_passed(kafka: KafkaSettings) -> None:
    producer = await start_producer(kafka)
    await producer.send_and_wait(kafka.topic("journal"), b"\xc1rubbish", partition=1)
    await producer.stop()
    async with keeper(kafka) as journal:
        await journal.prepare(1, None, "")
        assert await begin(journal.of(1), "t") == 1
    consumer = await start_consumer(kafka, kafka.topic("dead-letters"))
    letter = decode_record(await asyncio.wait_for(consumer.getone(), DEADLINE_S), DeadLetter)
    await consumer.stop()
    assert (letter.origin_topic, letter.origin_offset, letter.value) == (kafka.topic("journal"), 0, b"\xc1rubbish")


async def test_a_journal_that_retention_has_cut_off_is_an_error_and_can_be_accepted(kafka: KafkaSettings) -> None:
    async with keeper(kafka) as journal:
        await journal.prepare(0, None, "")
        await run_task(journal.of(0), "t", 0)
        metadata = journal.commit_metadata(0, 0)
    async with admin_client(kafka) as admin:
        place = TopicPartition(kafka.topic("journal"), 0)
        await admin.delete_records({place: RecordsToDelete(before_offset=2)})
    async with keeper(kafka) as journal:
        with pytest.raises(DataLossError, match=r"must be read from offset 0 on, but reaches from 2 to 4"):
            await journal.prepare(0, 0, metadata)
    async with keeper(kafka, accepts_data_loss=True) as journal:
        await journal.prepare(0, 0, metadata)
        assert journal.of(0).fold.tasks == {}


async def test_a_topic_of_tasks_that_was_made_anew_is_an_error(kafka: KafkaSettings) -> None:
    async with keeper(kafka) as journal:
        with pytest.raises(DataLossError, match="ends at 0: the topic was made anew"):
            await journal.prepare(0, 17, "")
