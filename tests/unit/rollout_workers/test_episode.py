"""Episode: turns, tool calls, limits and what is recorded, on a scripted engine and a tool caller of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from rollstream.rollout_workers.agents import find_agent, react
from rollstream.rollout_workers.byte_chat_format import ByteChatFormat
from rollstream.rollout_workers.effects import AttemptIdentity, EffectLog
from rollstream.rollout_workers.engine import Engine, Generation, PolicyRef
from rollstream.rollout_workers.episode import Episode, EpisodeServices
from rollstream.rollout_workers.episode_limits import EpisodeCut
from rollstream.rollout_workers.scripted_engine import LatencyProfile, ScriptedEngine, ScriptPrompt
from rollstream.schemas import ids
from rollstream.schemas.errors import DataError, EngineError, SessionLostError, TransientError
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.tasks import ChatMessage, EpisodeLimits, RolloutTask, SamplingParams, ToolSpec
from rollstream.schemas.tools import ToolCall, ToolResult, ToolStatus
from rollstream.transport.journal.task_state import TaskState

CALCULATOR = ToolSpec(name="calculator", description="", parameters={})
BASH = ToolSpec(name="bash", description="", parameters={}, is_stateful=True, toolset="code")


def call_text(name: str = "calculator", argument: str = "1 + 1") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {{"expression": "{argument}"}}}}</tool_call>'


def saying(*turns: str) -> Callable[[ScriptPrompt], str]:
    """A script that says one text per turn, then falls silent on the last."""

    def script(prompt: ScriptPrompt) -> str:
        turn = sum(token == 258 for token in prompt.ids) - 1
        return turns[min(turn, len(turns) - 1)]

    return script


class Tools:
    """Answers every call at once and keeps what it was asked."""

    def __init__(self, status: ToolStatus = "ok", incarnations: tuple[str, ...] = ("box",)) -> None:
        self.calls: list[tuple[ToolCall, str]] = []
        self.ended: list[str] = []
        self._status: ToolStatus = status
        self._incarnations = incarnations

    async def call(self, call: ToolCall, toolset: str) -> ToolResult:
        self.calls.append((call, toolset))
        incarnation = self._incarnations[(len(self.calls) - 1) % len(self._incarnations)]
        return ToolResult(
            call_id=call.call_id,
            session_id=call.session_id,
            status=self._status,
            content=f"answer {len(self.calls)}",
            incarnation=incarnation if call.session_id else None,
        )

    def end_session(self, session_id: str, toolset: str) -> None:
        self.ended.append(session_id)


def task(*, tools: tuple[ToolSpec, ...] = (CALCULATOR, BASH), limits: EpisodeLimits | None = None) -> RolloutTask:
    return RolloutTask(
        run_id="run",
        group_id=ids.group_id("run", 0),
        group_index=0,
        group_size=1,
        member_index=0,
        trajectory_id=ids.trajectory_id("run", 0, 0),
        messages=[ChatMessage(role="user", content="What is 1 + 1?")],
        tools=list(tools),
        sampling=SamplingParams(max_tokens=400),
        limits=limits or EpisodeLimits(),
    )


class AttemptJournal:
    """A journal in which attempt 1 of one task has begun, at offset 77."""

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


class HangingEngine(ScriptedEngine):
    """Never answers, whatever it is told."""

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        request_id: str,
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int],
        policy: PolicyRef | None = None,
    ) -> Generation:
        await asyncio.Event().wait()
        raise AssertionError


def episode(
    script: Callable[[ScriptPrompt], str],
    tools: Tools | None = None,
    *,
    of: RolloutTask | None = None,
    journal: AttemptJournal | None = None,
    latency: LatencyProfile | None = None,
    max_model_len: int = 32768,
    engine: Engine | None = None,
) -> Episode:
    engine = engine or ScriptedEngine(script, latency=latency, max_model_len=max_model_len)
    services = EpisodeServices(engine, ByteChatFormat(), tools or Tools())
    identity, of = AttemptIdentity(1, 77), of or task()
    return Episode(
        of, services, identity, EffectLog(journal or AttemptJournal(), of.trajectory_id, identity, writer="w")
    )


async def test_react_calls_tools_until_a_turn_calls_none() -> None:
    tools = Tools()
    run = episode(saying(call_text(), "It is 2."), tools)
    await react(run)
    sample = run.sample.build()
    assert sample is not None
    assert run.texts == (call_text(), "It is 2.")
    assert [call.arguments for call, _ in tools.calls] == ['{"expression":"1 + 1"}']
    observed = bytes(i for i in sample.response_ids[sample.response_mask == 0] if i < 256)
    assert observed == b"answer 1"
    assert [turn.tool_calls for turn in sample.turns] == [1, 0]


async def test_the_sampled_ids_are_the_engines_own_to_the_last_one() -> None:
    run = episode(saying(call_text(), "It is 2."))
    await react(run)
    sample = run.sample.build()
    assert sample is not None
    first = sample.response_ids[sample.turns[0].start : sample.turns[0].end].tolist()
    assert first == [*call_text().encode(), 260]
    assert sample.response_logprobs[sample.response_mask == 1].max() < 0


async def test_parallel_calls_are_answered_in_call_order_whatever_finishes_first() -> None:
    class Reversed(Tools):
        def __init__(self) -> None:
            super().__init__()
            self.second_answered = asyncio.Event()

        async def call(self, call: ToolCall, toolset: str) -> ToolResult:
            if "first" in call.arguments:
                await self.second_answered.wait()
            else:
                self.second_answered.set()
            return ToolResult(call_id=call.call_id, session_id=None, status="ok", content=call.arguments)

    run = episode(saying(call_text(argument="first") + call_text(argument="second"), "done"), Reversed())
    async with asyncio.timeout(5):
        await react(run)
    assert [o.content for o in run.observations] == ['{"expression":"first"}', '{"expression":"second"}']


async def test_a_malformed_call_is_answered_with_its_reason_and_not_sent() -> None:
    tools = Tools()
    run = episode(saying("<tool_call>{not json</tool_call>", "sorry"), tools)
    await react(run)
    assert tools.calls == []
    assert run.malformed_turns == 1
    assert run.observations[0].content.startswith("Error: malformed tool call: ")
    sample = run.sample.build()
    assert sample is not None
    assert sample.turns[0].is_malformed


async def test_an_unknown_tool_is_answered_with_the_known_ones_and_not_sent() -> None:
    tools = Tools()
    run = episode(saying(call_text("teleport"), "ok"), tools)
    await react(run)
    assert tools.calls == []
    assert run.observations[0].content == "Error: unknown tool 'teleport'; the tools are: bash, calculator"


async def test_calls_over_the_limit_of_a_turn_are_answered_and_not_sent() -> None:
    tools = Tools()
    limited = task(limits=EpisodeLimits(max_tool_calls_per_turn=2))
    run = episode(saying(call_text() * 4, "ok"), tools, of=limited)
    await react(run)
    assert len(tools.calls) == 2
    assert [o.status for o in run.observations] == ["ok", "ok", "error", "error"]


@pytest.mark.parametrize(
    ("limits", "reason", "turns"),
    [
        (EpisodeLimits(max_turns=2), "max_turns", 2),
        (EpisodeLimits(max_response_tokens=60), "max_tokens", 1),
        (EpisodeLimits(wall_clock_s=0), "wall_clock", 0),
    ],
)
async def test_limits_cut_the_episode(limits: EpisodeLimits, reason: str, turns: int) -> None:
    run = episode(saying(call_text()), of=task(limits=limits))
    with pytest.raises(EpisodeCut) as cut:
        await react(run)
    assert cut.value.reason == reason
    assert run.sample.num_turns == turns


async def test_malformed_for_ever_is_cut() -> None:
    run = episode(saying("<tool_call>{"), of=task(limits=EpisodeLimits(max_malformed_turns=1)))
    with pytest.raises(EpisodeCut, match="malformed"):
        await react(run)
    assert run.malformed_turns == 2


async def test_the_context_of_the_model_cuts_the_episode() -> None:
    prompt_length = len(episode(saying("x")).sample.ids)
    run = episode(saying(call_text()), max_model_len=prompt_length + 160)
    with pytest.raises(EpisodeCut) as cut:
        await react(run)
    assert cut.value.reason == "context_length"
    assert run.sample.num_turns == 2
    sample = run.sample.build()
    assert sample is not None
    assert len(sample.prompt_ids) + len(sample.response_ids) <= prompt_length + 160


async def test_the_wall_clock_ends_a_generation_and_keeps_what_it_said() -> None:
    slow = LatencyProfile(token_s=0.01)
    run = episode(saying("x" * 300), of=task(limits=EpisodeLimits(wall_clock_s=0.2)), latency=slow)
    with pytest.raises(EpisodeCut) as cut:
        async with asyncio.timeout(5):
            await react(run)
    assert cut.value.reason == "wall_clock"
    sample = run.sample.build()
    assert sample is not None
    assert 0 < len(sample.response_ids) < 300
    assert sample.turns[0].finish_reason == "abort"


async def test_the_session_token_names_the_sandbox_and_everything_it_has_run() -> None:
    tools = Tools()
    run = episode(saying(call_text("bash"), call_text("bash") * 2, call_text("bash"), "ok"), tools)
    await react(run)
    sent = [call for call, _ in tools.calls]
    assert {toolset for _, toolset in tools.calls} == {"code"}
    assert {call.session_id for call in sent} == {ids.session_id(run.task.trajectory_id, 77)}
    assert len({call.call_id for call in sent}) == 4
    known = [call.call_id for call in sent]
    assert [call.token for call in sent] == [
        None,
        ids.session_token("box", known[:1]),
        ids.session_token("box", known[:1]),
        ids.session_token("box", known[:3]),
    ]


async def test_results_of_one_session_from_two_sandboxes_end_the_attempt() -> None:
    run = episode(saying(call_text("bash"), call_text("bash"), "ok"), Tools(incarnations=("box", "other box")))
    with pytest.raises(SessionLostError, match="other box"):
        await react(run)


@pytest.mark.parametrize("status", ["session_lost", "expired", "outcome_unknown", "worker_error"])
async def test_infrastructure_answers_never_become_text(status: ToolStatus) -> None:
    run = episode(saying(call_text("bash"), "ok"), Tools(status))
    with pytest.raises(TransientError):
        await react(run)
    assert run.observations == ()


@pytest.mark.parametrize("status", ["error", "timeout", "limit", "unknown_tool", "invalid_arguments"])
async def test_answers_of_tools_become_text_whatever_they_say(status: ToolStatus) -> None:
    run = episode(saying(call_text("bash"), "ok"), Tools(status))
    await react(run)
    assert [o.status for o in run.observations] == [status]


async def test_replay_from_the_log_asks_neither_engine_nor_tools() -> None:
    journal, tools = AttemptJournal(), Tools()
    first = episode(saying(call_text("bash"), call_text(), "It is 2."), tools, journal=journal)
    await react(first)

    def refuse(prompt: ScriptPrompt) -> str:
        raise AssertionError("the engine was asked")

    second = episode(refuse, Tools("worker_error"), journal=journal)
    await react(second)
    one, two = first.sample.build(), second.sample.build()
    assert one is not None
    assert two is not None
    assert one.response_ids.tolist() == two.response_ids.tolist()
    assert one.response_logprobs.tolist() == two.response_logprobs.tolist()
    assert one.turns == two.turns


async def test_time_and_randomness_are_the_same_on_replay() -> None:
    journal = AttemptJournal()
    first, second = episode(saying("x"), journal=journal), episode(saying("x"), journal=journal)
    assert await first.now() == await second.now()
    assert first.random.random() == second.random.random()


async def test_a_prompt_that_does_not_fit_is_an_error_of_the_task() -> None:
    with pytest.raises(DataError, match=r"max_model_len is 10: shorten it"):
        await episode(saying("x"), max_model_len=10).generate()


async def test_what_a_model_with_a_longer_context_has_said_is_replayed_by_one_with_a_shorter() -> None:
    journal = AttemptJournal()
    first = episode(saying(call_text(), "It is 2."), journal=journal)
    await react(first)
    second = episode(saying("never asked"), journal=journal, max_model_len=len(first.sample.ids) - 20)
    await react(second)
    assert second.texts == first.texts


async def test_time_spent_before_a_takeover_counts_and_waiting_for_it_does_not() -> None:
    journal = AttemptJournal()
    slow = LatencyProfile(token_s=0.002)
    limits = EpisodeLimits(wall_clock_s=0.5)
    first = episode(saying(call_text()), of=task(limits=limits), latency=slow, journal=journal)
    turn = await first.generate()
    await first.call_tools(turn.tool_calls)
    spent_s = first.sample.num_turns and (first.sample.build() or pytest.fail("nothing sampled")).turns[0].generate_s
    assert 0 < spent_s < 0.5
    second = episode(saying(call_text(), "x" * 390), of=task(limits=limits), latency=slow, journal=journal)
    with pytest.raises(EpisodeCut) as cut:
        await react(second)
    assert cut.value.reason == "wall_clock"
    sample = second.sample.build()
    assert sample is not None
    assert sample.turns[0].generate_s == spent_s
    assert sample.turns[-1].generate_s < 0.5


async def test_an_engine_that_does_not_even_abort_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollstream.rollout_workers.episode.ABORT_GRACE_S", 0.05)
    run = episode(
        saying("x" * 300), of=task(limits=EpisodeLimits(wall_clock_s=0.05)), engine=HangingEngine(saying("x"))
    )
    with pytest.raises(EngineError, match="the engine hangs"):
        async with asyncio.timeout(5):
            await react(run)


async def test_only_calls_that_were_sampled_here_and_now_are_marked_as_first() -> None:
    journal, one, two = AttemptJournal(), Tools(), Tools()
    first = episode(saying(call_text("bash"), call_text("bash"), "ok"), one, journal=journal)
    turn = await first.generate()
    await first.call_tools(turn.tool_calls)
    await first.generate()
    second = episode(saying(call_text("bash"), call_text("bash"), "ok"), two, journal=journal)
    await react(second)
    assert [call.is_first for call, _ in one.calls] == [True]
    assert [call.is_first for call, _ in two.calls] == [False]


async def test_branches_have_sessions_and_samples_of_their_own_and_replay_in_any_order() -> None:
    def script(prompt: ScriptPrompt) -> str:
        return "done" if "answer" in prompt.text else call_text("bash", "ls") if "list" in prompt.text else "I list"

    async def run(agent: Episode, order: tuple[int, ...]) -> None:
        turn = await agent.generate()
        assert turn.text == "I list"
        lanes = [agent.branch([ChatMessage(role="user", content="list files")]), agent.branch()]
        for lane in order:
            await react(lanes[lane])
        await agent.generate()

    journal, tools = AttemptJournal(), Tools()
    first = episode(script, tools, journal=journal)
    await run(first, (0, 1))
    second = episode(script, Tools("worker_error"), journal=journal)
    await run(second, (1, 0))
    assert [lane.lane for lane in first.lanes] == [(), (1,), (2,)]
    assert len({call.session_id for call, _ in tools.calls}) == 2
    samples, again = ([lane.sample.build() for lane in e.lanes] for e in (first, second))
    assert [s.response_ids.tolist() for s in samples if s] == [s.response_ids.tolist() for s in again if s]
    copy = samples[2]
    assert copy is not None
    assert copy.prompt_ids.tolist() == first.sample.ids[: len(copy.prompt_ids)]


def test_an_unknown_agent_is_named_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'dance' is unknown: known are .*'react'"):
        find_agent("dance")


def test_an_agent_that_cannot_be_imported_is_an_error_of_the_task() -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        find_agent("no_such_module:agent")
