from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from rollstream.schemas.errors import InvalidMessageError, IsolationError, TransientError
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.call_handling import CallHandler
from rollstream.tool_workers.functions import TimeLimit, Tool, ToolError, ToolOutput, declared_tool, tool
from rollstream.tool_workers.registry import ToolRegistry
from rollstream.tool_workers.sandbox.replies import Execution, SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.sandbox_pool import SandboxPool
from rollstream.tool_workers.sessions import SessionLedger
from rollstream.tool_workers.tool_runner import ToolRunner

RESULTS = "tool-results"


@dataclass
class FakePublisher:
    """Keeps what is published: (partition, answer)."""

    sent: list[tuple[int, ToolResult]] = field(default_factory=list[tuple[int, ToolResult]])
    failure: TransientError | None = None
    missing_partition: int | None = None

    async def publish(self, message: ToolResult, *, key: str, topic: str, partition: int, deadline_s: float) -> None:
        assert (key, topic) == (message.call_id, RESULTS)
        if self.failure is not None:
            raise self.failure
        if partition == self.missing_partition:
            raise InvalidMessageError("no such partition")
        self.sent.append((partition, message))

    @property
    def last(self) -> ToolResult:
        return self.sent[-1][1]


class FakeSandbox(Sandbox):
    """Answers with what it has run."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.is_closed = False

    async def bash(self, command: str, *, timeout_s: float) -> Execution:
        if command == "die":
            raise SandboxLostError("it died")
        self.commands.append(command)
        return Execution(0, None, " ".join(self.commands), "", 0, 0.0)

    async def close(self) -> None:
        self.is_closed = True


class FakeOpener:
    def __init__(self) -> None:
        self.opened: list[FakeSandbox] = []
        self.failure: IsolationError | None = None

    async def open(self) -> FakeSandbox:
        if self.failure is not None:
            raise self.failure
        self.opened.append(FakeSandbox())  # pyright: ignore[reportAbstractUsage] -- no other call is made
        return self.opened[-1]


class Bench:
    """A handler with tools of its own, and everything around it faked."""

    def __init__(self, max_waiting: int = 10) -> None:
        self.publisher = FakePublisher()
        self.opener = FakeOpener()
        self.runs: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.commits: list[bool] = []
        names = (f"incarnation-{n}" for n in itertools.count())
        ledger = SessionLedger(new_incarnation=lambda: next(names), remembered_results=10)
        self.handler = CallHandler(
            ToolRegistry(self.tools()),
            ledger,
            ToolRunner(worker_id="w", max_output_chars=100),
            SandboxPool(self.opener, max_open=3, reclaim=lambda: None),
            self.publisher,
            max_waiting=max_waiting,
        )

    def tools(self) -> list[Tool]:
        @tool
        async def echo(text: str) -> str:
            """Say it."""
            await self.gate.wait()
            self.runs.append(text)
            return text

        @tool
        async def shell(box: Sandbox, limit: TimeLimit, command: str) -> str:
            """Run it."""
            return (await box.bash(command, timeout_s=limit.timeout_s)).output

        @tool(stateful=False)
        async def once(box: Sandbox, command: str) -> str:
            """Run it alone."""
            return (await box.bash(command, timeout_s=1)).output

        @tool(is_idempotent=False)
        async def pay(amount: int) -> str:
            """Pay."""
            self.runs.append(f"paid {amount}")
            return "paid"

        @tool(is_idempotent=False)
        async def pay_elsewhere() -> str:
            """Pay, but do not hear about it."""
            self.runs.append("paid")
            raise TransientError("no answer from the bank")

        @tool(is_idempotent=False)
        async def pay_inside(box: Sandbox, command: str) -> str:
            """Pay in the sandbox."""
            return (await box.bash(command, timeout_s=1)).output

        @tool
        async def slow_shell(box: Sandbox, command: str) -> str:
            """Run it and think about it."""
            output = (await box.bash(command, timeout_s=1)).output
            await self.gate.wait()
            return output

        @tool
        def fail(how: str) -> Any:
            """Fail."""
            errors: dict[str, BaseException] = {
                "said": ToolError("wrong colour"),
                "bug": KeyError("colour"),
                "down": TransientError("the service is down"),
                "exit": SystemExit(3),
                "timeout": TimeoutError("inside"),
                "stop": StopIteration("inside"),
            }
            raise errors[how]

        @tool(timeout_s=0.05)
        def hang() -> str:
            """Hang."""
            time.sleep(1)
            return "late"

        @tool
        def give(what: str) -> Any:
            """Give."""
            values: dict[str, Any] = {
                "none": None,
                "number": 3,
                "table": {"a": [1, 2]},
                "long": "x" * 1000,
                "colours": "\x1b[31mred\x1b[0m\x00",
                "limit": ToolOutput("too much", "limit"),
            }
            return values[what]

        functions = (echo, shell, slow_shell, once, pay, pay_elsewhere, pay_inside, fail, hang, give)
        declared = [declared_tool(each) for each in functions]
        return [each for each in declared if each is not None]

    async def handle(self, call: ToolCall) -> ToolResult:
        async def commit_first() -> bool:
            return self.commits.pop(0)

        await self.handler.handle(call, commit_first, arrived=time.monotonic())
        return self.publisher.last


def call(name: str, arguments: str, **fields: Any) -> ToolCall:
    defaults: dict[str, Any] = {
        "call_id": f"{name}-{arguments}",
        "session_id": None,
        "turn": 0,
        "token": None,
        "deadline": time.time() + 30,
        "timeout_s": 5.0,
        "reply_topic": RESULTS,
        "reply_partition": 1,
    }
    return ToolCall(tool=name, arguments=arguments, **(defaults | fields))


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_an_answer_goes_to_its_caller(bench: Bench) -> None:
    result = await bench.handle(call("echo", '{"text": "hello"}'))
    assert (result.status, result.content, result.worker_id) == ("ok", "hello", "w")
    assert bench.publisher.sent[0][0] == 1


async def test_an_unknown_tool_is_answered_with_the_known_ones(bench: Bench) -> None:
    result = await bench.handle(call("ecko" * 1000, "{}"))
    assert result.status == "unknown_tool"
    assert len(result.content) < 300
    assert "echo, shell" in result.content or result.is_truncated


async def test_invalid_arguments_are_answered_with_what_is_wrong_and_open_nothing(bench: Bench) -> None:
    result = await bench.handle(call("shell", '{"command": 5}', session_id="s"))
    assert (result.status, result.incarnation) == ("invalid_arguments", None)
    assert result.content == "Error: invalid arguments for shell: Expected `str`, got `int` - at `$.command`"
    assert bench.opener.opened == []


@pytest.mark.parametrize(
    ("how", "status", "content"),
    [
        ("said", "error", "Error: wrong colour"),
        ("bug", "error", "Error: KeyError: 'colour'"),
        ("down", "worker_error", "the service is down"),
        ("exit", "error", "Error: the tool called exit(3)"),
        ("timeout", "error", "Error: TimeoutError: inside"),
        ("stop", "error", "Error: RuntimeError: the tool raised StopIteration: inside"),
    ],
)
async def test_a_tool_that_raises_is_an_answer(bench: Bench, how: str, status: str, content: str) -> None:
    result = await bench.handle(call("fail", f'{{"how": "{how}"}}'))
    assert (result.status, result.content) == (status, content)


async def test_a_function_that_hangs_is_left_behind(bench: Bench) -> None:
    started = time.monotonic()
    result = await bench.handle(call("hang", "{}"))
    assert (result.status, result.content) == ("timeout", "Error: timed out after 0.05 s")
    assert time.monotonic() - started < 0.8


@pytest.mark.parametrize(
    ("what", "content", "status"),
    [
        ("none", "(no output)", "ok"),
        ("number", "3", "ok"),
        ("table", '{"a":[1,2]}', "ok"),
        ("colours", "red\\x00", "ok"),
        ("limit", "too much", "limit"),
    ],
)
async def test_what_a_tool_returns_becomes_clean_text(bench: Bench, what: str, content: str, status: str) -> None:
    result = await bench.handle(call("give", f'{{"what": "{what}"}}'))
    assert (result.content, result.status) == (content, status)


async def test_long_text_is_capped_and_marked(bench: Bench) -> None:
    result = await bench.handle(call("give", '{"what": "long"}'))
    assert result.is_truncated
    assert "[... 900 characters omitted ...]" in result.content


async def test_a_call_sent_again_while_it_runs_is_run_once_and_answered_to_every_caller(bench: Bench) -> None:
    bench.gate.clear()
    async with asyncio.TaskGroup() as group:
        for partition in (1, 1, 2):
            again = call("echo", '{"text": "hi"}', call_id="a", reply_partition=partition)
            group.create_task(bench.handler.handle(again, _popping(bench), arrived=0.0))
            await asyncio.sleep(0)
        bench.gate.set()
    assert bench.runs == ["hi"]
    assert sorted(partition for partition, _ in bench.publisher.sent) == [1, 2]


async def test_a_call_sent_again_afterwards_is_answered_from_memory(bench: Bench) -> None:
    first = await bench.handle(call("echo", '{"text": "hi"}', call_id="a"))
    assert await bench.handle(call("echo", '{"text": "hi"}', call_id="a", reply_partition=2)) == first
    assert bench.runs == ["hi"]


async def test_a_session_goes_on_from_its_token_and_from_no_other(bench: Bench) -> None:
    first = await bench.handle(call("shell", '{"command": "one"}', session_id="s"))
    again = await bench.handle(call("shell", '{"command": "two"}', session_id="s", turn=1, token=first.token))
    assert (again.content, again.incarnation) == ("one two", first.incarnation)
    lost = await bench.handle(call("shell", '{"command": "three"}', session_id="s", turn=2, token=first.token))
    assert lost.status == "session_lost"
    assert len(bench.opener.opened) == 1


async def test_a_sandbox_that_dies_loses_its_session_and_is_closed(bench: Bench) -> None:
    first = await bench.handle(call("shell", '{"command": "one"}', session_id="s"))
    lost = await bench.handle(call("shell", '{"command": "die"}', session_id="s", turn=1, token=first.token))
    assert lost.status == "session_lost"
    assert bench.opener.opened[0].is_closed
    after = await bench.handle(call("shell", '{"command": "two"}', session_id="s", turn=1, token=first.token))
    assert after.status == "session_lost"


async def test_a_sandboxed_tool_without_state_gets_a_sandbox_of_its_own(bench: Bench) -> None:
    for name in ("a", "b"):
        result = await bench.handle(call("once", f'{{"command": "{name}"}}', session_id="s"))
        assert (result.content, result.incarnation) == (name, None)
    assert [each.is_closed for each in bench.opener.opened] == [True, True]


async def test_a_sandbox_that_does_not_start_is_no_text_for_the_model(bench: Bench) -> None:
    bench.opener.failure = IsolationError("no namespaces")
    assert (await bench.handle(call("shell", '{"command": "a"}', session_id="s"))).status == "worker_error"
    bench.opener.failure = None
    assert (await bench.handle(call("shell", '{"command": "a"}', session_id="s"))).status == "ok"


async def test_an_expired_call_is_refused(bench: Bench) -> None:
    result = await bench.handle(call("echo", '{"text": "hi"}', deadline=time.time() - 1))
    assert (result.status, bench.runs) == ("expired", [])


async def test_a_harmful_call_runs_only_after_its_commit(bench: Bench) -> None:
    bench.commits = [False, True]
    await bench.handler.handle(call("pay", '{"amount": 1}'), _popping(bench), arrived=0.0)
    assert (bench.runs, bench.publisher.sent) == ([], [])
    assert (await bench.handle(call("pay", '{"amount": 1}'))).status == "ok"
    assert bench.runs == ["paid 1"]
    assert (await bench.handle(call("pay", '{"amount": 2}', is_first=False))).status == "outcome_unknown"


async def test_an_answer_nobody_can_be_given_is_let_go(bench: Bench) -> None:
    bench.publisher.failure = TransientError("no broker")
    await bench.handler.handle(call("echo", '{"text": "hi"}'), _popping(bench), arrived=0.0)
    assert bench.runs == ["hi"]


async def test_idle_sessions_are_closed(bench: Bench) -> None:
    first = await bench.handle(call("shell", '{"command": "one"}', session_id="s"))
    await bench.handler.close_idle_sessions(3600)
    assert not bench.opener.opened[0].is_closed
    await bench.handler.close_idle_sessions(-1)
    assert bench.opener.opened[0].is_closed
    lost = await bench.handle(call("shell", '{"command": "two"}', session_id="s", turn=1, token=first.token))
    assert lost.status == "session_lost"


async def raised_by(doing: Coroutine[Any, Any, None]) -> Exception | None:
    try:
        await doing
    except Exception as error:
        return error
    return None


def _popping(bench: Bench) -> Callable[[], Awaitable[bool]]:
    async def commit_first() -> bool:
        return bench.commits.pop(0)

    return commit_first


async def test_a_requester_that_cannot_be_answered_keeps_no_other_waiting(bench: Bench) -> None:
    bench.publisher.missing_partition = 7
    bench.gate.clear()

    def handling(partition: int) -> Coroutine[Any, Any, None]:
        asked = call("echo", '{"text": "hi"}', call_id="a", reply_partition=partition)
        return bench.handler.handle(asked, _popping(bench), arrived=0.0)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(raised_by(handling(1)))
        for partition in (7, 2):
            await asyncio.sleep(0)
            await handling(partition)
        bench.gate.set()
    assert isinstance(running.result(), InvalidMessageError)
    assert sorted(partition for partition, _ in bench.publisher.sent) == [1, 2]


async def test_a_call_that_outlives_its_session_neither_answers_for_nor_closes_the_next_one(bench: Bench) -> None:
    bench.gate.clear()
    slow = call("slow_shell", '{"command": "old"}', call_id="a", session_id="s")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bench.handler.handle(slow, _popping(bench), arrived=0.0))
        await asyncio.sleep(0.01)
        await bench.handle(call("shell", '{"command": "die"}', call_id="b", session_id="s"))
        assert bench.publisher.last.status == "session_lost"
        fresh = await bench.handle(call("shell", '{"command": "new"}', call_id="c", session_id="s"))
        bench.gate.set()
        await running
    assert bench.publisher.last.status == "session_lost"
    assert fresh.content == "new"
    after = await bench.handle(call("shell", '{"command": "more"}', session_id="s", turn=1, token=fresh.token))
    assert (after.content, after.incarnation) == ("new more", fresh.incarnation)
    assert [each.is_closed for each in bench.opener.opened] == [True, False]


async def test_a_harmful_call_that_infrastructure_cut_off_is_of_unknown_outcome(bench: Bench) -> None:
    bench.commits = [True]
    result = await bench.handle(call("pay_elsewhere", "{}"))
    assert result.status == "outcome_unknown"
    assert "no answer from the bank" in result.content
    again = await bench.handle(call("pay_elsewhere", "{}", is_first=False))
    assert (again.status, bench.runs) == ("outcome_unknown", ["paid"])


async def test_a_harmful_call_in_a_session_that_could_not_be_committed_has_not_been_run(bench: Bench) -> None:
    bench.commits = [False, True]
    first = await bench.handle(call("shell", '{"command": "one"}', session_id="s"))
    harmful = call("pay_inside", '{"command": "two"}', session_id="s", turn=1, token=first.token)
    assert await bench.handle(harmful) == first  # no answer of its own
    assert (await bench.handle(harmful)).content == "one two"


async def fill_the_house(bench: Bench) -> list[str | None]:
    """Sessions a, b and c take all places."""
    answers = [
        await bench.handle(call("shell", f'{{"command": "{name}"}}', session_id=name, call_id=name)) for name in "abc"
    ]
    return [answer.token for answer in answers]


def asking(bench: Bench, group: asyncio.TaskGroup, asked: ToolCall) -> asyncio.Task[None]:
    return group.create_task(bench.handler.handle(asked, _popping(bench), arrived=time.monotonic()))


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def first_call(session_id: str, **fields: Any) -> ToolCall:
    command = f'{{"command": "{session_id}"}}'
    return call("shell", command, **({"session_id": session_id, "call_id": session_id} | fields))


def answers_to(bench: Bench, call_id: str) -> list[str]:
    return [answer.status for _, answer in bench.publisher.sent if answer.call_id == call_id]


async def test_a_full_house_makes_calls_wait_and_whoever_came_first_is_served_first(bench: Bench) -> None:
    await fill_the_house(bench)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for name in ("x", "y"):
            asking(bench, group, first_call(name))
        await settled()
        assert bench.handler.waiting == 2
        await bench.handler.end_session("b")
        await settled()
        assert (answers_to(bench, "x"), answers_to(bench, "y")) == (["ok"], [])
        await bench.handler.end_session("x")
    assert answers_to(bench, "y") == ["ok"]
    assert bench.handler.waiting == 0


async def test_who_asks_again_while_the_call_waits_is_told_to_go_on_asking_and_puts_it_off(bench: Bench) -> None:
    await fill_the_house(bench)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waiting = asking(bench, group, first_call("x", deadline=time.time() + 0.05))
        await settled()
        await bench.handle(first_call("x", deadline=time.time() + 30, reply_partition=2, is_first=False))
        assert (bench.publisher.sent[-1][0], bench.publisher.last.status) == (2, "busy")
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        await bench.handler.end_session("a")
    assert sorted(partition for partition, answer in bench.publisher.sent if answer.content == "x") == [1, 2]
    assert bench.handler.statuses["busy"] == 1


async def test_a_call_that_never_got_a_place_has_left_no_trace_and_runs_when_it_comes_again(bench: Bench) -> None:
    await fill_the_house(bench)
    assert (await bench.handle(first_call("x", deadline=time.time() + 0.02))).status == "busy"
    assert (await bench.handle(call("once", '{"command": "y"}', deadline=time.time() + 0.02))).status == "busy"
    await bench.handler.end_session("a")
    assert (await bench.handle(first_call("x", is_first=False))).content == "x"
    await bench.handler.end_session("b")
    assert (await bench.handle(call("once", '{"command": "y"}', is_first=False))).content == "y"
    assert len(bench.opener.opened) == 5


async def test_calls_of_sessions_that_are_open_do_not_wait_for_a_place(bench: Bench) -> None:
    token, *_ = await fill_the_house(bench)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        asking(bench, group, first_call("x"))
        await settled()
        again = call("shell", '{"command": "again"}', session_id="a", turn=1, token=token)
        assert (await bench.handle(again)).content == "a again"
        await bench.handler.end_session("a")


async def test_more_calls_than_may_wait_are_given_back_at_once_but_for_harmful_ones() -> None:
    bench = Bench(max_waiting=1)
    await fill_the_house(bench)
    bench.commits = [True]
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        asking(bench, group, first_call("x"))
        await settled()
        assert (await bench.handle(first_call("y"))).status == "busy"
        harmful = asking(bench, group, call("pay_inside", '{"command": "pay"}', session_id="z", call_id="z"))
        await settled()
        assert not harmful.done()
        assert bench.commits == [True]  # not claimed before there is a place
        for name in "ab":
            await bench.handler.end_session(name)
    assert (answers_to(bench, "x"), answers_to(bench, "z")) == (["ok"], ["ok"])


async def test_an_ended_session_is_closed_at_once_and_ending_it_again_or_a_stranger_does_nothing(bench: Bench) -> None:
    first = await bench.handle(call("shell", '{"command": "one"}', session_id="s"))
    for session_id in ("stranger", "s", "s"):
        await bench.handler.end_session(session_id)
    assert [each.is_closed for each in bench.opener.opened] == [True]
    late = await bench.handle(call("shell", '{"command": "two"}', session_id="s", turn=1, token=first.token))
    assert late.status == "session_lost"


async def test_a_session_that_is_ended_while_a_call_runs_is_closed_after_it(bench: Bench) -> None:
    bench.gate.clear()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        asking(bench, group, call("slow_shell", '{"command": "slow"}', session_id="s", call_id="s"))
        await settled()
        await bench.handler.end_session("s")
        assert not bench.opener.opened[0].is_closed
        bench.gate.set()
    assert answers_to(bench, "s") == ["ok"]
    assert bench.opener.opened[0].is_closed


async def test_a_session_that_is_ended_while_its_first_call_waits_takes_no_place_any_more(bench: Bench) -> None:
    await fill_the_house(bench)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        asking(bench, group, first_call("x"))
        await settled()
        await bench.handler.end_session("x")
    assert answers_to(bench, "x") == ["busy"]
    assert len(bench.opener.opened) == 3


async def test_a_worker_that_leaves_gives_back_what_waits(bench: Bench) -> None:
    await fill_the_house(bench)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        asking(bench, group, first_call("x"))
        await settled()
        bench.handler.give_waiting_calls_back()
    assert answers_to(bench, "x") == ["busy"]
