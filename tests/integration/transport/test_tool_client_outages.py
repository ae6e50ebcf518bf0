"""A caller whose broker goes away: its calls do not grow old, and what must be sent once is sent once."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rollstream.schemas.errors import TransientError
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.transport.clients import start_consumer
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.publisher import Publisher, RecordPlace
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tool_client import ToolClient
from rollstream.transport.topic_admin import apply_topics

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(120)]

ALLOWED_S = 2.0
PARTITIONS = {"tasks": 1, "journal": 1, "tool-calls.default": 1, "tool-results": 1, "trajectories": 1}


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker that may be killed."""
    with LocalBroker(BrokerSettings(data_dir=tmp_path / "broker", source="jars")) as broker:
        yield broker


async def with_topics(bootstrap: str) -> KafkaSettings:
    kafka = KafkaSettings(bootstrap=bootstrap, prefix="outage.", partitions=PARTITIONS, start_timeout_s=20)
    await apply_topics(kafka)
    return kafka


def call() -> ToolCall:
    return ToolCall(
        call_id="call",
        session_id=None,
        turn=0,
        token=None,
        tool="tool",
        arguments="{}",
        deadline=time.time() + ALLOWED_S,
        timeout_s=1.0,
        reply_topic="",
        reply_partition=0,
    )


async def sent(kafka: KafkaSettings, count: int) -> list[ToolCall]:
    """The calls in the log, once there are so many."""
    consumer = await start_consumer(kafka, kafka.topic("tool-calls.default"))
    found: list[ToolCall] = []
    try:
        async with asyncio.timeout(30):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [decode_record(record, ToolCall) for record in records]
    finally:
        await consumer.stop()
    return found


async def answer(kafka: KafkaSettings, partition: int = 0) -> None:
    async with Publisher(kafka) as publisher:
        result = ToolResult(call_id="call", session_id=None, status="ok", content="answer")
        await publisher.publish(result, key="call", partition=partition)


@asynccontextmanager
async def calling(kafka: KafkaSettings, **options: Any) -> AsyncGenerator[asyncio.Task[ToolResult]]:
    async with ToolClient(kafka, worker_id="a", **options) as client, asyncio.TaskGroup() as group:
        yield group.create_task(client.call(call(), "default"))


async def test_an_outage_that_begins_between_two_sendings_is_not_the_calls_time(own_broker: LocalBroker) -> None:
    kafka = await with_topics(own_broker.bootstrap)
    async with calling(kafka, resend_after_s=60) as answering:
        await sent(kafka, 1)
        await asyncio.to_thread(own_broker.kill9)
        await asyncio.wait([answering], timeout=3 * ALLOWED_S + 4)
        assert not answering.done()
        await asyncio.to_thread(own_broker.start)
        first, *later = await sent(kafka, 2)
        assert first.is_first
        assert [each.is_first for each in later] == [False]
        await answer(kafka)
        assert (await answering).content == "answer"


async def test_a_first_sending_that_waits_for_the_broker_is_in_the_log_once(own_broker: LocalBroker) -> None:
    kafka = await with_topics(own_broker.bootstrap)
    async with ToolClient(kafka, worker_id="a", resend_after_s=0.5) as client, asyncio.TaskGroup() as group:
        await asyncio.to_thread(own_broker.kill9)
        answering = group.create_task(client.call(call(), "default"))
        await asyncio.wait([answering], timeout=16)  # longer than a request may take that is not repeated for ever
        await asyncio.to_thread(own_broker.start)
        calls = await sent(kafka, 3)
        await answer(kafka)
        assert (await answering).content == "answer"
    assert [each.is_first for each in calls] == [True] + [False] * (len(calls) - 1)


async def test_a_broker_that_stays_away_is_waited_for_only_so_long(own_broker: LocalBroker) -> None:
    kafka = await with_topics(own_broker.bootstrap)
    async with ToolClient(kafka, worker_id="a", max_put_off_s=3.0) as client:
        await asyncio.to_thread(own_broker.kill9)
        started = time.monotonic()
        with pytest.raises(TransientError, match="its outcome is unknown"):
            await client.call(call(), "default")
        assert ALLOWED_S + 3.0 <= time.monotonic() - started < ALLOWED_S + 3.0 + 6.0


class UncertainPublisher(Publisher):
    """Never learns what became of what it must send once."""

    async def publish(self, message: Any, **options: Any) -> RecordPlace:
        place = await super().publish(message, **options)
        if not options.get("is_repeatable", True):
            raise TransientError("the connection broke")
        return place


class UncertainClient(ToolClient):
    def __init__(self, kafka: KafkaSettings, **options: Any) -> None:
        super().__init__(kafka, **options)
        self._publisher = UncertainPublisher(kafka)


async def test_after_an_uncertain_first_sending_no_copy_is_marked_as_the_first(kafka: KafkaSettings) -> None:
    async with UncertainClient(kafka, worker_id="a", resend_after_s=0.1) as client, asyncio.TaskGroup() as group:
        answering = group.create_task(client.call(call(), "default"))
        calls = await sent(kafka, 3)
        await answer(kafka, client.reply_partition)
        await answering
    assert [each.is_first for each in calls] == [True] + [False] * (len(calls) - 1)
