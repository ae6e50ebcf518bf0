"""Whoever uses a client may be cancelled at any moment, also while it starts or stops: nothing of the client is left.

Each piece of work is cancelled where it waits for the first time, in another run where it waits for the second time,
and so on until it ends before.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection

from rollstream.schemas.tools import SessionEnd
from rollstream.transport.clients import start_consumer, start_producer, stop_consumer, stop_producer
from rollstream.transport.intake import GroupIntake
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import topic_partitions
from rollstream.transport.topic_watch import topic_ends

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

MOST_WAITS = 200
"""No piece of work waits as often."""
END_S = 5.0


async def look_at_topics(kafka: KafkaSettings) -> None:
    await topic_partitions(kafka)


async def look_at_ends(kafka: KafkaSettings) -> None:
    await topic_ends(kafka, [kafka.topic("tasks")])


async def consume(kafka: KafkaSettings) -> None:
    consumer = await start_consumer(kafka, kafka.topic("tasks"))
    try:
        await consumer.getmany(timeout_ms=1)
    finally:
        await stop_consumer(consumer)


async def produce(kafka: KafkaSettings) -> None:
    producer = await start_producer(kafka)
    try:
        await producer.send_and_wait(kafka.topic("tool-calls.default"), b"x")
    finally:
        await stop_producer(producer)


async def publish(kafka: KafkaSettings) -> None:
    async with Publisher(kafka, profile="rpc") as publisher:
        await publisher.publish(SessionEnd(session_id="s"), key="s", topic=kafka.topic("tool-calls.default"))


async def take_on(kafka: KafkaSettings) -> None:
    async with GroupIntake(kafka, [kafka.topic("tasks")], group_id=kafka.group("g"), instance_id="one"):
        pass


Work = Callable[[KafkaSettings], Coroutine[Any, Any, None]]


@types.coroutine
def cancelled_at(steps: frozenset[int], work: Coroutine[Any, Any, None]) -> Generator[Any, Any, int]:
    """Run ``work`` and cancel its task where it waits for the n-th time; the number of times it waited."""
    task = asyncio.current_task()
    assert task is not None
    resume: Callable[[], Any] = lambda: work.send(None)  # noqa: E731
    waits = 0
    while True:
        try:
            awaited = resume()
        except StopIteration:
            return waits
        waits += 1
        if waits in steps:
            task.cancel()
        try:
            answer = yield awaited
        except BaseException as error:
            resume = lambda error=error: work.throw(error)  # noqa: E731
        else:
            resume = lambda answer=answer: work.send(answer)  # noqa: E731


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[AIOKafkaConnection]:
    """All that were opened; held here, so that none is closed because it is forgotten."""
    opened: list[AIOKafkaConnection] = []
    connect = AIOKafkaConnection.connect

    async def noted_connect(connection: AIOKafkaConnection) -> Any:
        opened.append(connection)
        return await connect(connection)

    monkeypatch.setattr(AIOKafkaConnection, "connect", noted_connect)
    return opened


@pytest.mark.parametrize("times", [1, 2], ids=["once", "again while it cleans up"])
@pytest.mark.parametrize("work", [look_at_topics, look_at_ends, consume, produce, publish, take_on])
async def test_nothing_is_left_of_clients_whose_user_is_cancelled(
    kafka: KafkaSettings, connections: list[AIOKafkaConnection], work: Work, times: int
) -> None:
    before = asyncio.all_tasks()
    for step in range(1, MOST_WAITS):
        steps = frozenset(range(step, step + times))
        running = asyncio.create_task(run_cancelled(steps, work(kafka)))
        await asyncio.wait([running])

        if left := asyncio.all_tasks() - before:
            _, left = await asyncio.wait(left, timeout=END_S)
        assert not left, f"cancelled at {steps}"
        assert not [connection for connection in connections if connection.connected()], f"cancelled at {steps}"
        connections.clear()
        if not running.cancelled():
            assert running.result() < step
            return
    pytest.fail(f"it waits more than {MOST_WAITS} times")


async def run_cancelled(steps: frozenset[int], work: Coroutine[Any, Any, None]) -> int:
    return await cancelled_at(steps, work)
