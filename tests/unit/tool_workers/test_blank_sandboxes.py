from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.blank_sandboxes import BlankSandboxes
from rollstream.tool_workers.sandbox.sandbox import Sandbox


class Blank(Sandbox):
    """Lives until it is closed or told to die."""

    def __init__(self) -> None:
        self.is_alive = True
        self.closed = 0

    async def close(self) -> None:
        self.is_alive = False
        self.closed += 1


class Opener:
    def __init__(self) -> None:
        self.opened: list[Blank] = []
        self.fails = False

    async def open(self) -> Blank:
        await asyncio.sleep(0)
        if self.fails:
            raise IsolationError("not now")
        self.opened.append(Blank())  # pyright: ignore[reportAbstractUsage] -- no other call is made
        return self.opened[-1]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def stocked(opener: Opener, clock: Clock, wanted: int = 2) -> AsyncGenerator[BlankSandboxes]:
    blanks = BlankSandboxes(opener, wanted=wanted, max_age_s=60, clock=clock)
    async with asyncio.TaskGroup() as group:
        stocking = group.create_task(blanks.keep_stocked())
        await until_stocked(blanks, wanted)
        yield blanks
        stocking.cancel()
    await blanks.close()


async def until_stocked(blanks: BlankSandboxes, wanted: int) -> None:
    async with asyncio.timeout(5):
        while len(blanks) < wanted:  # noqa: ASYNC110 -- nobody is told
            await asyncio.sleep(0)


async def test_what_is_handed_out_was_opened_before_and_is_replaced() -> None:
    opener = Opener()
    async with stocked(opener, Clock()) as blanks:
        first = await blanks.open()
        assert first is opener.opened[0]
        await until_stocked(blanks, 2)
        assert len(opener.opened) == 3
        assert not first.closed  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    assert [each.closed for each in opener.opened] == [0, 1, 1]


async def test_the_dead_are_not_handed_out() -> None:
    opener = Opener()
    async with stocked(opener, Clock()) as blanks:
        opener.opened[0].is_alive = False
        assert await blanks.open() is opener.opened[1]
        assert opener.opened[0].closed == 1


async def test_without_a_stock_one_is_opened_and_its_failure_is_the_callers() -> None:
    opener = Opener()
    blanks = BlankSandboxes(opener, wanted=0, max_age_s=60, clock=Clock())
    assert await blanks.open() is opener.opened[0]
    opener.fails = True
    with pytest.raises(IsolationError, match="not now"):
        await blanks.open()


async def test_the_old_are_replaced() -> None:
    opener, clock = Opener(), Clock()
    async with stocked(opener, clock) as blanks:
        clock.now = 61
        taken = await blanks.open()  # wakes the one who stocks
        async with asyncio.timeout(5):
            while not opener.opened[1].closed:  # noqa: ASYNC110 -- nobody is told
                await asyncio.sleep(0)
        await until_stocked(blanks, 2)
        assert taken is opener.opened[0]
