"""What must not be in the log twice is not sent again once it may be there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError, OutOfOrderSequenceNumber
from aiokafka.structs import RecordMetadata, TopicPartition

from rollstream.schemas.errors import TransientError
from rollstream.schemas.tools import ToolResult
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

RESULT = ToolResult(call_id="a", session_id=None, status="ok", content="x")


class FakeProducer:
    """Each send goes as planned: refused at the door (an error), lost on the way (a failed future), or an offset."""

    def __init__(self, plan: list[Exception | tuple[Exception] | int]) -> None:
        self.plan = plan
        self.accepted = 0

    async def partitions_for(self, topic: str) -> set[int]:
        return {0}

    async def send(self, topic: str, *_: Any, **__: Any) -> asyncio.Future[Any]:
        step = self.plan.pop(0)
        if isinstance(step, Exception):
            raise step
        self.accepted += 1
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if isinstance(step, int):
            outcome.set_result(RecordMetadata(topic, 0, TopicPartition(topic, 0), step, None, 0, 0))
        else:
            outcome.set_exception(step[0])
        return outcome


class PlannedPublisher(Publisher):
    def __init__(self, *plan: Exception | tuple[Exception] | int) -> None:
        super().__init__(KafkaSettings(bootstrap="nowhere:1"))
        self.producer = FakeProducer(list(plan))

    async def __aenter__(self) -> PlannedPublisher:
        self._started = self.producer  # pyright: ignore[reportAttributeAccessIssue]  -- stands in for aiokafka's
        return self

    async def __aexit__(self, *_: object) -> None:
        """There is nothing to stop."""

    async def _renew(self, failed: AIOKafkaProducer) -> None:
        pass


@pytest.mark.parametrize("lost", [KafkaTimeoutError(), KafkaConnectionError(), OutOfOrderSequenceNumber()])
async def test_a_record_of_unknown_fate_is_not_sent_again(lost: Exception) -> None:
    async with PlannedPublisher((lost,), 7) as publisher:
        with pytest.raises(TransientError, match="is not known"):
            await publisher.publish(RESULT, key="a", is_repeatable=False)
        assert publisher.producer.accepted == 1


async def test_a_repeatable_one_is_sent_until_its_place_is_known() -> None:
    async with PlannedPublisher((KafkaTimeoutError(),), -1, 7) as publisher:
        assert (await publisher.publish(RESULT, key="a")).offset == 7
        assert publisher.producer.accepted == 3


async def test_what_was_refused_at_the_door_is_sent_again() -> None:
    async with PlannedPublisher(KafkaTimeoutError(), KafkaConnectionError(), 7) as publisher:
        assert (await publisher.publish(RESULT, key="a", is_repeatable=False)).offset == 7
        assert publisher.producer.accepted == 1


async def test_a_record_the_broker_has_without_knowing_where_is_not_sent_again() -> None:
    async with PlannedPublisher(-1, 7) as publisher:
        assert (await publisher.publish(RESULT, key="a", is_repeatable=False)).offset == -1


async def test_only_an_idempotent_producer_can_send_once() -> None:
    publisher = Publisher(KafkaSettings(bootstrap="nowhere:1"), profile="rpc")
    with pytest.raises(AssertionError, match="idempotent"):
        await publisher.publish(RESULT, key="a", is_repeatable=False)
