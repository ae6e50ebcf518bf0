from __future__ import annotations

import asyncio

import pytest

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.sandbox_pool import SandboxPool


class FakeSandbox(Sandbox):
    """Counts its closings."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class FakeOpener:
    """Opens fakes, when told to."""

    def __init__(self) -> None:
        self.opened: list[FakeSandbox] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: IsolationError | None = None

    async def open(self) -> FakeSandbox:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.opened.append(FakeSandbox())  # pyright: ignore[reportAbstractUsage] -- no other call is made
        return self.opened[-1]


def new_pool(opener: FakeOpener, max_open: int = 2, reclaimable: list[str] | None = None) -> SandboxPool:
    idle = reclaimable or []
    return SandboxPool(
        opener, max_open=max_open, reclaim=lambda: idle.pop(0) if idle else None, reclaim_interval_s=0.01
    )


async def test_siblings_that_come_first_share_one_sandbox() -> None:
    opener = FakeOpener()
    pool = new_pool(opener)
    first, second = await asyncio.gather(pool.of_session("s"), pool.of_session("s"))
    assert first is second
    assert len(opener.opened) == len(pool) == 1


async def test_at_most_so_many_are_open_and_the_next_waits() -> None:
    opener = FakeOpener()
    pool = new_pool(opener, max_open=1)
    one = await pool.for_one_call()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(pool.of_session("s"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await pool.discard(one)
    assert waiting.result() is opener.opened[1]
    assert opener.opened[0].closed == 1


async def test_an_idle_session_makes_room() -> None:
    opener = FakeOpener()
    pool = new_pool(opener, max_open=1, reclaimable=["idle"])
    await pool.of_session("idle")
    await pool.of_session("busy")
    assert [each.closed for each in opener.opened] == [1, 0]
    assert len(pool) == 1


async def test_a_sandbox_that_does_not_start_gives_its_place_back() -> None:
    opener = FakeOpener()
    opener.failure = IsolationError("no")
    pool = new_pool(opener, max_open=1)
    with pytest.raises(IsolationError):
        await pool.of_session("s")
    opener.failure = None
    await pool.of_session("s")


async def test_a_session_closed_while_it_opens_is_closed_when_it_is_open() -> None:
    opener = FakeOpener()
    opener.gate.clear()
    pool = new_pool(opener, max_open=1)
    async with asyncio.TaskGroup() as group:
        group.create_task(pool.of_session("s"))
        await asyncio.sleep(0)
        await pool.close("s")
        opener.gate.set()
    assert opener.opened[0].closed == 1
    await pool.of_session("another")


async def test_closing_all_closes_each_once() -> None:
    opener = FakeOpener()
    pool = new_pool(opener)
    await pool.of_session("a")
    await pool.of_session("b")
    await pool.close_all()
    await pool.close("a")
    assert [each.closed for each in opener.opened] == [1, 1]


async def test_places_are_given_in_the_order_they_were_asked_for_however_long_it_takes() -> None:
    opener = FakeOpener()
    pool = new_pool(opener, max_open=1)
    busy = await pool.for_one_call()
    served: list[str] = []

    async def serve(name: str) -> None:
        sandbox = await pool.for_one_call()
        served.append(name)
        await pool.discard(sandbox)

    async with asyncio.TaskGroup() as group:
        for name in "abcd":
            group.create_task(serve(name))
            await asyncio.sleep(0.015)  # longer than the pool waits before it asks for an idle session again
        await pool.discard(busy)
    assert served == list("abcd")


async def test_whoever_no_longer_waits_for_a_place_takes_none() -> None:
    opener = FakeOpener()
    pool = new_pool(opener, max_open=1)
    busy = await pool.for_one_call()
    async with asyncio.TaskGroup() as group:
        given_up, given_up_late, waiting = (group.create_task(pool.of_session(name)) for name in "abc")
        await asyncio.sleep(0)
        given_up.cancel()
        await pool.discard(busy)
        given_up_late.cancel()
    assert waiting.result() is opener.opened[-1]
    assert [each.closed for each in opener.opened] == [1, 0]


async def test_idle_sessions_make_room_for_all_who_wait() -> None:
    opener = FakeOpener()
    idle: list[str] = []
    pool = SandboxPool(opener, max_open=3, reclaim=lambda: idle.pop(0) if idle else None, reclaim_interval_s=0.01)
    for name in "abc":
        await pool.of_session(name)
    idle += ["a", "b", "c"]
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(pool.of_session("d"))
        group.create_task(pool.of_session("e"))
    assert [each.closed for each in opener.opened] == [1, 1, 0, 0, 0]
    assert idle == ["c"]


async def test_the_pool_knows_who_would_have_to_wait() -> None:
    pool = new_pool(FakeOpener(), max_open=1)
    assert not pool.is_full_for(None)
    await pool.of_session("a")
    assert [pool.is_full_for(name) for name in ("a", "b", None)] == [False, True, True]
