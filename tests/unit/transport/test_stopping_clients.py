"""Stopping a client never harms whoever stops it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, ProducerClosed

from rollstream.schemas.errors import TransientError
from rollstream.schemas.tools import ToolResult
from rollstream.transport import publisher as publishing
from rollstream.transport.clients import stop_quietly
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings


async def cancel_oneself() -> None:
    own = asyncio.current_task()
    assert own is not None
    own.cancel()
    await asyncio.sleep(0)


async def test_a_client_that_cancels_itself_while_stopping_does_not_cancel_the_caller() -> None:
    await stop_quietly(cancel_oneself())

    caller = asyncio.current_task()
    assert caller is not None
    assert caller.cancelling() == 0


@pytest.mark.parametrize("error", [KafkaConnectionError("gone"), ConnectionResetError(), TimeoutError()])
async def test_what_fails_while_stopping_does_not_matter(error: Exception) -> None:
    async def fail() -> None:
        raise error

    await stop_quietly(fail())


async def test_a_client_that_does_not_stop_is_left_alone_after_the_time_out() -> None:
    was_cut = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            was_cut.set()

    await stop_quietly(hang(), timeout_s=0.01)

    assert was_cut.is_set()


async def test_the_caller_can_be_cancelled_meanwhile() -> None:
    stopping = asyncio.create_task(stop_quietly(asyncio.sleep(60)))
    await asyncio.sleep(0)
    stopping.cancel()

    with pytest.raises(asyncio.CancelledError):
        await stopping


class ClosedProducer:
    async def partitions_for(self, _: str) -> set[int]:
        return {0}

    async def send(self, *_: Any, **__: Any) -> None:
        raise ProducerClosed


async def test_what_is_still_published_when_a_publisher_was_left_starts_no_further_producer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[ClosedProducer] = []

    async def start(*_: Any, **__: Any) -> ClosedProducer:
        started.append(ClosedProducer())
        return started[-1]

    async def stop(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(publishing, "start_producer", start)
    monkeypatch.setattr(publishing, "stop_producer", stop)
    async with Publisher(KafkaSettings(bootstrap="nowhere:1")) as publisher:
        pass
    with pytest.raises(TransientError, match="ProducerClosed"):
        await publisher.publish(
            ToolResult(call_id="a", session_id=None, status="ok", content="x"), key="a", deadline_s=0.05
        )
    assert len(started) == 1
