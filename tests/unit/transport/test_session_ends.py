from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from rollstream.schemas.errors import TransientError
from rollstream.schemas.tools import SessionEnd
from rollstream.transport.session_ends import MAX_AT_ONCE, SessionEnds


class FakePublisher:
    """Sends while it may; sessions called ``bad`` never get through."""

    def __init__(self) -> None:
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.sending = 0
        self.sent: list[tuple[str, str, str]] = []

    async def publish(self, message: SessionEnd, *, topic: str, key: str, deadline_s: float) -> None:
        self.sending += 1
        await self.may_send.wait()
        if message.session_id == "bad":
            raise TransientError("no broker")
        self.sent.append((message.session_id, topic, key))


@pytest.fixture
async def publisher() -> FakePublisher:
    return FakePublisher()


@asynccontextmanager
async def running(ends: SessionEnds) -> AsyncGenerator[None]:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(ends.run())
        yield
        await ends.flush()
        task.cancel()


async def test_an_end_follows_the_calls_of_its_session(publisher: FakePublisher) -> None:
    ends = SessionEnds(publisher)
    async with running(ends):
        ends.tell("s", "tool-calls.default")
    assert publisher.sent == [("s", "tool-calls.default", "s")]


async def test_one_that_cannot_be_sent_keeps_no_other(publisher: FakePublisher) -> None:
    ends = SessionEnds(publisher)
    async with running(ends):
        for name in ("bad", "s", "bad", "t"):
            ends.tell(name, "calls")
    assert sorted(name for name, _, _ in publisher.sent) == ["s", "t"]


async def test_whoever_tells_does_not_wait_and_what_is_too_much_is_let_go(publisher: FakePublisher) -> None:
    ends = SessionEnds(publisher, max_waiting=2)
    for name in "abc":
        ends.tell(name, "calls")
    async with running(ends):
        pass
    assert sorted(name for name, _, _ in publisher.sent) == ["a", "b"]


async def test_only_so_many_are_sent_at_once(publisher: FakePublisher) -> None:
    publisher.may_send.clear()
    ends = SessionEnds(publisher)
    async with running(ends):
        for number in range(2 * MAX_AT_ONCE):
            ends.tell(str(number), "calls")
        for _ in range(2 * MAX_AT_ONCE):
            await asyncio.sleep(0)
        assert publisher.sending == MAX_AT_ONCE
        publisher.may_send.set()
    assert len(publisher.sent) == 2 * MAX_AT_ONCE
