from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rollstream.rollout_workers.tool_calling import ToolCalls, ToolRequest
from rollstream.schemas import ids
from rollstream.schemas.errors import SessionLostError, TransientError
from rollstream.schemas.tasks import ChatMessage, RolloutTask, ToolSpec
from rollstream.schemas.tools import ToolCall, ToolResult

BASH = ToolSpec(name="bash", description="", parameters={}, is_stateful=True)
PAY = ToolSpec(name="pay", description="", parameters={}, is_idempotent=False)
TASK = RolloutTask(
    run_id="run",
    group_id=ids.group_id("run", 0),
    group_index=0,
    group_size=1,
    member_index=0,
    trajectory_id=ids.trajectory_id("run", 0, 0),
    messages=[ChatMessage(role="user", content="x")],
    tools=[BASH, PAY],
)

Answering = Callable[[ToolCall], ToolResult]


class Caller:
    def __init__(self, answer: Answering) -> None:
        self.answer = answer
        self.sent: list[ToolCall] = []
        self.ended: list[tuple[str, str]] = []

    async def call(self, call: ToolCall, toolset: str) -> ToolResult:
        self.sent.append(call)
        await asyncio.sleep(0)
        return self.answer(call)

    def end_session(self, session_id: str, toolset: str) -> None:
        self.ended.append((session_id, toolset))


def ok(call: ToolCall, incarnation: str | None = None) -> ToolResult:
    return ToolResult(
        call_id=call.call_id, session_id=call.session_id, status="ok", content="done", incarnation=incarnation
    )


def calls(answer: Answering) -> tuple[ToolCalls, Caller]:
    caller = Caller(answer)
    return ToolCalls(TASK, 7, caller), caller


def bash(command: str) -> ToolRequest:
    return ToolRequest("bash", f'{{"command": "{command}"}}')


async def test_the_answers_of_one_turn_come_from_one_sandbox() -> None:
    tools, _ = calls(lambda call: ok(call, "box" if "a" in call.arguments.split(":")[1] else "other box"))
    with pytest.raises(SessionLostError, match="other box"):
        await tools.run(0, [bash("a"), bash("b")])
    assert (await tools.run(0, [bash("a"), bash("aa")])).observations[0].incarnation == "box"


async def test_the_answers_of_later_turns_come_from_the_sandbox_of_the_first() -> None:
    tools, _ = calls(lambda call: ok(call, "box" if call.turn == 0 else "other box"))
    first = await tools.run(0, [bash("a")])
    tools.advance(0, [bash("a")], first.observations)
    with pytest.raises(SessionLostError, match="other box"):
        await tools.run(1, [bash("b")])


async def test_tools_without_state_belong_to_no_sandbox() -> None:
    tools, caller = calls(lambda call: ok(call, None if call.tool == "pay" else "box"))
    requests = [ToolRequest("pay", "{}"), bash("a")]
    answered = await tools.run(0, requests)
    tools.advance(0, requests, answered.observations)
    await tools.run(1, [ToolRequest("pay", "{}"), bash("b")])
    assert [(call.session_id is None, call.token) for call in caller.sent] == [
        (True, None),
        (False, None),
        (True, None),
        (False, ids.session_token("box", [caller.sent[1].call_id])),
    ]


@pytest.mark.parametrize("status", ["outcome_unknown", "expired", "worker_error"])
async def test_what_is_no_answer_for_the_model_ends_the_attempt_under_its_own_name(status: str) -> None:
    tools, _ = calls(
        lambda call: ToolResult(call_id=call.call_id, session_id=None, status=status, content="may have run")  # pyright: ignore[reportArgumentType]  -- parametrized
    )
    with pytest.raises(TransientError, match=f"'pay' ended as {status}: may have run"):
        await tools.run(0, [ToolRequest("pay", "{}")])


@pytest.mark.parametrize("is_first", [True, False])
async def test_only_who_has_just_sampled_a_call_says_that_it_is_the_first(is_first: bool) -> None:
    tools, caller = calls(ok)
    await tools.run(0, [ToolRequest("pay", "{}")], is_first=is_first)
    assert [call.is_first for call in caller.sent] == [is_first]


async def test_a_call_that_cannot_be_run_is_answered_and_not_sent() -> None:
    tools, caller = calls(ok)
    answered = await tools.run(0, [ToolRequest("", "", error="Error: no JSON")])
    assert (answered.observations[0].content, caller.sent) == ("Error: no JSON", [])


async def test_only_a_session_that_may_be_open_is_ended() -> None:
    tools, caller = calls(lambda call: ok(call, "box" if call.session_id else None))
    await tools.run(0, [ToolRequest("pay", "{}"), ToolRequest("", "", error="Error: no JSON")])
    tools.end_session()
    assert caller.ended == []
    await tools.run(1, [bash("a")])
    tools.end_session()
    assert caller.ended == [(ids.session_id(TASK.trajectory_id, 7), "default")]


async def test_a_session_whose_answers_were_replayed_is_ended_too() -> None:
    before, _ = calls(lambda call: ok(call, "box"))
    answered = await before.run(0, [bash("a")])
    tools, caller = calls(ok)
    tools.advance(0, [bash("a")], answered.observations)
    tools.end_session()
    assert (len(caller.ended), caller.sent) == (1, [])


async def test_a_session_whose_call_failed_is_ended_too() -> None:
    def fail(_: ToolCall) -> ToolResult:
        raise TransientError("no answer")

    tools, caller = calls(fail)
    with pytest.raises(TransientError):
        await tools.run(0, [bash("a")])
    tools.end_session()
    assert len(caller.ended) == 1
