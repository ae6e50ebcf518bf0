from __future__ import annotations

import asyncio
import time

import pytest

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.schemas.tools import ToolCall
from rollstream.tool_workers.functions import Tool, declared_tool, tool
from rollstream.tool_workers.provision import Provision
from rollstream.tool_workers.tool_runner import ToolRunner
from rollstream.tool_workers.tool_states import SessionInfo, ToolState, ToolStates


class Basket(ToolState):
    """What somebody has chosen."""

    made: list[Basket] = []  # noqa: RUF012 -- of the test

    async def setup(self, session: SessionInfo) -> None:
        self.owner = session.session_id
        self.items: list[str] = []
        self.is_open = True
        await asyncio.sleep(0)
        Basket.made.append(self)

    async def teardown(self) -> None:
        self.is_open = False


class Broken(ToolState):
    async def setup(self, session: SessionInfo) -> None:
        raise OSError("no service")


class Stuck(ToolState):
    async def teardown(self) -> None:
        await asyncio.sleep(60)


@tool
async def choose(basket: Basket, item: str) -> str:
    """Choose something."""
    basket.items.append(item)
    return ", ".join(basket.items)


@tool
async def fail(state: Broken) -> str:
    """Never gets so far."""
    return "reached"


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    Basket.made.clear()


def info(incarnation: str = "i1") -> SessionInfo:
    return SessionInfo("session", "trajectory", incarnation)


def declared(function: object) -> Tool:
    found = declared_tool(function)
    assert found is not None
    return found


def call(arguments: str = '{"item": "tea"}', session_id: str | None = "session") -> ToolCall:
    return ToolCall(
        call_id="c",
        session_id=session_id,
        turn=0,
        token=None,
        tool="choose",
        arguments=arguments,
        deadline=time.time() + 60,
        timeout_s=5,
        reply_topic="",
        reply_partition=0,
    )


def test_a_state_makes_a_tool_stateful_and_is_no_argument_of_the_models() -> None:
    assert declared(choose).is_stateful
    assert list(declared(choose).parameters["properties"]) == ["item"]


async def test_calls_of_a_session_share_one_state_and_sessions_do_not() -> None:
    states = ToolStates(timeout_s=1)
    first, again, other = await asyncio.gather(
        states.of(Basket, info()), states.of(Basket, info()), states.of(Basket, info("i2"))
    )
    assert first is again
    assert first is not other
    assert len(Basket.made) == 2
    assert (first.owner, len(states)) == ("session", 2)


async def test_a_state_is_taken_down_when_its_session_is_over_and_never_comes_back() -> None:
    states = ToolStates(timeout_s=1)
    async with asyncio.TaskGroup() as group:
        taking_down = group.create_task(states.run())
        basket = await states.of(Basket, info())
        states.end_session("i1")
        states.end_session("i1")
        states.end_session("unknown")
        async with asyncio.timeout(5):
            while basket.is_open:  # noqa: ASYNC110 -- nobody is told
                await asyncio.sleep(0)
        assert await states.of(Basket, info("i3")) is not basket
        taking_down.cancel()
    await states.close()
    assert [each.is_open for each in Basket.made] == [False, False]


async def test_a_set_up_that_fails_is_infrastructure_and_a_taking_down_that_hangs_is_left() -> None:
    states = ToolStates(timeout_s=0.05)
    with pytest.raises(TransientError, match="'Broken' cannot be set up: OSError"):
        await states.of(Broken, info())
    await states.of(Stuck, info())
    started = time.monotonic()
    await states.close()
    assert time.monotonic() - started < 5


async def test_the_runner_hands_the_state_to_the_tool() -> None:
    runner = ToolRunner(worker_id="w", max_output_chars=1000, provision=Provision(ToolStates(timeout_s=1)))
    arguments = declared(choose).parse('{"item": "tea"}')
    for expected in ("tea", "tea, tea"):
        result = await runner.run(declared(choose), call(), arguments, None, queue_s=0, incarnation="i1")
        assert (result.status, result.content) == ("ok", expected)
    broken = await runner.run(declared(fail), call("{}"), {}, None, queue_s=0, incarnation="i1")
    assert broken.status == "worker_error"
    alone = await runner.run(declared(choose), call(session_id=None), arguments, None, queue_s=0)
    assert alone.status == "worker_error"


def test_a_stateful_tool_needs_something_that_holds_its_state() -> None:
    async def nothing() -> str:
        """Hold nothing."""
        return ""

    with pytest.raises(SettingsError, match="Sandbox or ToolState"):
        tool(stateful=True)(nothing)
