from __future__ import annotations

import asyncio
import time
import uuid

import msgspec
import pytest

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.call_handling import CallHandler, CommitFirst
from rollstream.tool_workers.functions import Tool, declared_tool, tool
from rollstream.tool_workers.provision import Provision
from rollstream.tool_workers.registry import ToolRegistry
from rollstream.tool_workers.service import kept_states
from rollstream.tool_workers.sessions import SessionLedger
from rollstream.tool_workers.tool_runner import ToolRunner
from rollstream.tool_workers.tool_states import SessionInfo, ToolState, ToolStates
from rollstream.transport.metrics import REGISTRY


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
        await states.stop()
    assert taking_down.done()
    await states.close()
    assert [each.is_open for each in Basket.made] == [False, False]


async def test_a_state_that_cannot_even_be_made_is_infrastructure() -> None:
    class Unmade(ToolState):
        def __init__(self) -> None:
            raise ValueError("not like this")

    states = ToolStates(timeout_s=1)
    with pytest.raises(TransientError, match=r"'Unmade' cannot be set up.*not like this"):
        await states.of(Unmade, SessionInfo("s", "t", "i"))
    assert len(states) == 0


async def test_a_set_up_that_fails_is_infrastructure_and_a_taking_down_that_hangs_is_left() -> None:
    states = ToolStates(timeout_s=0.05)
    with pytest.raises(TransientError, match="'Broken' cannot be set up: OSError"):
        await states.of(Broken, info())
    await states.of(Stuck, info())
    started = time.monotonic()
    await states.close()
    assert time.monotonic() - started < 5


class Slow(ToolState):
    """Is set up and taken down when it is told to."""

    may_begin = asyncio.Event()
    may_end = asyncio.Event()
    ended = 0

    async def setup(self, session: SessionInfo) -> None:
        await Slow.may_begin.wait()

    async def teardown(self) -> None:
        await Slow.may_end.wait()
        Slow.ended += 1


@pytest.fixture
def slow() -> type[Slow]:
    Slow.may_begin, Slow.may_end, Slow.ended = asyncio.Event(), asyncio.Event(), 0
    return Slow


async def test_a_session_that_ends_while_its_state_is_set_up_leaves_nothing_behind(slow: type[Slow]) -> None:
    states = ToolStates(timeout_s=5)
    slow.may_end.set()
    async with asyncio.TaskGroup() as group:
        group.create_task(states.run())
        waiting = [asyncio.ensure_future(states.of(slow, info())) for _ in range(2)]
        await asyncio.sleep(0)
        states.end_session("i1")
        slow.may_begin.set()
        for each in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(each, TransientError)
        await states.stop()
    assert (slow.ended, len(states)) == (1, 0)


async def test_a_taking_down_that_takes_long_keeps_no_other_waiting_and_is_not_broken_off(slow: type[Slow]) -> None:
    slow.may_begin.set()
    async with kept_states(5) as states:
        await states.of(slow, info("i1"))
        basket = await states.of(Basket, info("i2"))
        states.end_session("i1")
        states.end_session("i2")
        async with asyncio.timeout(5):
            while basket.is_open:  # noqa: ASYNC110 -- nobody is told
                await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(slow.may_end.set)
    assert slow.ended == 1


async def test_a_taking_down_that_fails_is_counted_and_the_next_is_done() -> None:
    class Clumsy(ToolState):
        async def teardown(self) -> None:
            raise OSError("no service")

    states = ToolStates(timeout_s=1)
    await states.of(Clumsy, info())
    basket = await states.of(Basket, info())
    await states.close()
    assert REGISTRY.get_sample_value("rollstream_tool_failed_teardowns_total", {"state": "Clumsy"}) == 1
    assert not basket.is_open


async def test_a_harmful_tool_whose_state_cannot_be_set_up_has_done_no_harm() -> None:
    @tool(is_idempotent=False)
    async def harm(state: Broken) -> str:
        """Never gets so far."""
        return "reached"

    runner = ToolRunner(worker_id="w", max_output_chars=1000)
    result = await runner.run(declared(harm), call("{}"), {}, None, queue_s=0, incarnation="i1")
    assert result.status == "worker_error"


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


class Answers:
    """Where answers go."""

    def __init__(self) -> None:
        self.sent: list[ToolResult] = []

    async def publish(self, message: ToolResult, *, key: str, topic: str, partition: int, deadline_s: float) -> None:
        self.sent.append(message)


class Desk:
    """A handler of calls and what it keeps for sessions."""

    def __init__(self, *functions: object) -> None:
        self.answers = Answers()
        self.states = ToolStates(timeout_s=1)
        self.ledger = SessionLedger(
            new_incarnation=lambda: uuid.uuid4().hex, remembered_results=10, on_close=self.states.end_session
        )
        self.handler = CallHandler(
            ToolRegistry([declared(function) for function in functions]),
            self.ledger,
            ToolRunner(worker_id="w", max_output_chars=1000, provision=Provision(self.states)),
            None,
            self.answers,
        )

    async def ask(self, asked: ToolCall, commit_first: CommitFirst) -> ToolResult:
        await self.handler.handle(asked, commit_first, arrived=time.monotonic())
        return self.answers.sent[-1]

    async def take_down(self) -> None:
        await self.states.stop()
        await self.states.run()


async def committed() -> bool:
    return True


async def test_sessions_without_a_sandbox_keep_state_until_they_are_told_to_end() -> None:
    desk = Desk(choose)
    first = await desk.ask(call(), committed)
    assert (first.content, len(desk.states)) == ("tea", 1)
    await desk.handler.end_session("session")
    await desk.take_down()
    assert ([each.is_open for each in Basket.made], len(desk.states)) == ([False], 0)
    again = await desk.ask(msgspec.structs.replace(call(), call_id="d", token=first.token), committed)
    assert again.status == "session_lost"
    fresh = await desk.ask(msgspec.structs.replace(call(), call_id="e"), committed)
    assert (fresh.content, len(Basket.made)) == ("tea", 2)


async def test_a_set_up_that_fails_closes_the_session() -> None:
    desk = Desk(choose, fail)
    await desk.ask(call(), committed)
    token = desk.answers.sent[-1].token
    broken = msgspec.structs.replace(call("{}"), call_id="d", tool="fail", turn=1, token=token)
    assert (await desk.ask(broken, committed)).status == "worker_error"
    assert "session" not in desk.ledger
    await desk.take_down()
    assert [each.is_open for each in Basket.made] == [False]


async def test_a_session_closed_while_a_harmful_call_is_claimed_is_given_no_state() -> None:
    @tool(is_idempotent=False)
    async def order(basket: Basket) -> str:
        """Order it."""
        return "ordered"

    desk = Desk(order)

    async def closing() -> bool:
        await desk.handler.close_old_sessions(-60)
        return True

    asked = msgspec.structs.replace(call("{}"), tool="order", is_first=True)
    assert (await desk.ask(asked, closing)).status == "session_lost"
    assert (Basket.made, len(desk.states)) == ([], 0)


def test_a_tool_with_state_cannot_be_declared_without() -> None:
    async def forgetful(basket: Basket) -> str:
        """Forget."""
        return ""

    with pytest.raises(SettingsError, match="stateful=False"):
        tool(stateful=False)(forgetful)


def test_a_stateful_tool_needs_something_that_holds_its_state() -> None:
    async def nothing() -> str:
        """Hold nothing."""
        return ""

    with pytest.raises(SettingsError, match="Sandbox or ToolState"):
        tool(stateful=True)(nothing)
