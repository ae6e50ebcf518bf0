from __future__ import annotations

import asyncio

from rollstream.schemas.tools import ToolResult
from rollstream.transport.pending_calls import PendingCalls


def result(call_id: str, content: str = "x") -> ToolResult:
    return ToolResult(call_id=call_id, session_id=None, status="ok", content=content)


async def test_an_answer_reaches_everybody_who_waits_for_it_and_the_first_one_counts() -> None:
    pending = PendingCalls()
    first, second = pending.expect("a"), pending.expect("a")
    assert pending.answer(result("a", "one"))
    assert not pending.answer(result("a", "two"))
    assert {(await each).content for each in asyncio.as_completed([first, second])} == {"one"}


async def test_answers_nobody_waits_for_are_recognised() -> None:
    pending = PendingCalls()
    assert not pending.answer(result("a"))
    pending.expect("a")
    pending.forget("a")
    assert not pending.answer(result("a"))
    assert len(pending) == 0


async def test_a_call_is_forgotten_with_its_last_caller() -> None:
    pending = PendingCalls()
    pending.expect("a")
    pending.expect("a")
    pending.forget("a")
    assert len(pending) == 1
    assert pending.answer(result("a"))


async def test_of_two_callers_neither_misses_the_answer_after_one_that_does_not_count() -> None:
    pending = PendingCalls()
    first, second = pending.expect("a"), pending.expect("a")
    assert pending.answer(result("a", "busy"))
    again = pending.expect_another("a", than=first)
    assert pending.answer(result("a", "real"))
    assert pending.expect_another("a", than=second) is again
    assert pending.expected("a") is again
    assert (await again).content == "real"
