"""The tool ``finish``: what ends an episode, and what is judged then."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.agents import react
from rollstream.rollout_workers.byte_chat_format import ByteChatFormat
from rollstream.rollout_workers.effects import AttemptIdentity, EffectLog
from rollstream.rollout_workers.episode import Episode, EpisodeServices
from rollstream.rollout_workers.episode_limits import EpisodeCut
from rollstream.rollout_workers.finishing import answer_given, finishes
from rollstream.rollout_workers.scripted_engine import ScriptedEngine, ScriptPrompt
from rollstream.rollout_workers.tool_calling import Observation, ToolRequest
from rollstream.schemas import ids
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.tasks import ChatMessage, EpisodeLimits, RolloutTask, SamplingParams, ToolSpec
from rollstream.schemas.tools import ToolCall, ToolResult, ToolStatus
from rollstream.transport.journal.task_state import TaskState

TRAJECTORY = ids.trajectory_id("run", 0, 0)
IDENTITY = AttemptIdentity(1, 77)


def calling(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class Worker:
    """Answers every call; what a model reads of an answer is cut short."""

    def __init__(self, refused: Sequence[str] = ()) -> None:
        self.refused = refused
        self.called: list[str] = []

    async def call(self, call: ToolCall, toolset: str) -> ToolResult:
        self.called.append(call.tool)
        status: ToolStatus = "invalid_arguments" if call.arguments in self.refused else "ok"
        return ToolResult(call_id=call.call_id, session_id=None, status=status, content="cut short", is_truncated=True)

    def end_session(self, session_id: str, toolset: str) -> None:
        """There is none."""


class OneAttempt:
    """A journal in which attempt 1 of one task has begun."""

    def __init__(self) -> None:
        self._state = TaskState(first_offset=77, task_offset=0, births={1: 77})

    def state(self, trajectory_id: str) -> TaskState:
        return self._state

    def is_current(self) -> bool:
        return True

    async def until_current(self) -> None:
        """It always is."""

    async def append(self, record: JournalRecord) -> TaskState:
        self._state.apply(78, record)
        return self._state


def episode(worker: Worker, *turns: str, journal: OneAttempt | None = None, max_turns: int = 10) -> Episode:
    def script(prompt: ScriptPrompt) -> str:
        return turns[sum(token == 258 for token in prompt.ids) - 1]

    task = RolloutTask(
        run_id="run",
        group_id=ids.group_id("run", 0),
        group_index=0,
        group_size=1,
        member_index=0,
        trajectory_id=TRAJECTORY,
        messages=[ChatMessage(role="user", content="What is 6 * 7?")],
        tools=[ToolSpec(name=name, description="", parameters={}) for name in ("calculator", "finish")],
        sampling=SamplingParams(max_tokens=400),
        limits=EpisodeLimits(max_turns=max_turns),
    )
    log = EffectLog(journal or OneAttempt(), TRAJECTORY, IDENTITY, writer="w")
    return Episode(task, EpisodeServices(ScriptedEngine(script), ByteChatFormat(), worker), IDENTITY, log)


async def test_a_turn_that_finishes_is_the_last_one_and_its_other_calls_run() -> None:
    worker = Worker()
    run = episode(worker, calling("calculator") + calling("finish", answer="42"), "never said")
    await react(run)
    assert sorted(worker.called) == ["calculator", "finish"]
    assert (len(run.texts), run.answer, run.final_text) == (1, "42", "42")


async def test_without_it_a_turn_without_calls_is_the_last_one_and_its_text_is_judged() -> None:
    run = episode(Worker(), calling("calculator"), "It is 42.", "never said")
    await react(run)
    assert (run.answer, run.final_text) == (None, "It is 42.")


async def test_a_finish_that_is_refused_ends_nothing() -> None:
    run = episode(Worker(refused=["{}"]), calling("finish"), calling("finish", answer="42"), "never said")
    await react(run)
    assert (len(run.texts), run.final_text) == (2, "42")


async def test_of_several_answers_the_last_one_counts() -> None:
    run = episode(Worker(), calling("finish", answer="41") + calling("finish", answer="42"), "never said")
    await react(run)
    assert run.final_text == "42"


async def test_the_last_turn_may_finish_and_may_not_call_anything_else() -> None:
    run = episode(Worker(), calling("finish", answer="42"), max_turns=1)
    await react(run)
    assert run.final_text == "42"
    late = episode(Worker(), calling("calculator"), max_turns=1)
    with pytest.raises(EpisodeCut):
        await react(late)


async def test_a_replay_comes_to_the_same_answer_without_asking_anybody() -> None:
    journal, worker = OneAttempt(), Worker()
    turns = (calling("calculator"), calling("finish", answer="42"))
    first = episode(worker, *turns, journal=journal)
    await react(first)
    nobody = Worker()
    again = episode(nobody, *turns, journal=journal)
    await react(again)
    assert (again.texts, again.answer) == (first.texts, "42")
    assert (len(worker.called), nobody.called) == (2, [])


@given(st.text())
def test_the_answer_is_the_argument_as_the_model_wrote_it(answer: str) -> None:
    request = ToolRequest("finish", json.dumps({"answer": answer}))
    assert answer_given(request, Observation(status="ok", content="cleaned and cut")) == answer


@pytest.mark.parametrize("arguments", ["", "[]", "3", "{}", '{"answer": 3}', '{"reply": "42"}', "\ud800"])
def test_a_tool_of_ones_own_with_other_arguments_answers_with_what_it_returns(arguments: str) -> None:
    assert answer_given(ToolRequest("finish", arguments), Observation(status="ok", content="42")) == "42"


@pytest.mark.parametrize("status", ["error", "timeout", "limit", "unknown_tool", "invalid_arguments"])
def test_only_a_call_that_succeeds_gives_an_answer(status: ToolStatus) -> None:
    request = ToolRequest("finish", '{"answer": "42"}')
    assert answer_given(request, Observation(status=status, content="x")) is None


def test_calls_of_other_tools_and_calls_that_cannot_be_run_do_not_finish() -> None:
    assert finishes(ToolRequest("finish", "{}"))
    assert not finishes(ToolRequest("finish", "{}", error="Error: not run"))
    assert not finishes(ToolRequest("calculator", '{"answer": "42"}'))
    ok = Observation(status="ok", content="42")
    assert answer_given(ToolRequest("calculator", '{"answer": "42"}'), ok) is None
