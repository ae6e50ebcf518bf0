"""TaskRunner: every task ends in exactly one trajectory, and infrastructure never becomes data."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rollstream.rollout_workers.attempts import TaskRunner
from rollstream.rollout_workers.budgets import AttemptBudgets
from rollstream.rollout_workers.byte_chat_format import ByteChatFormat
from rollstream.rollout_workers.engine import Engine, Generation
from rollstream.rollout_workers.episode import Episode, EpisodeServices
from rollstream.rollout_workers.scripted_engine import ScriptedEngine, ScriptPrompt
from rollstream.rollout_workers.trajectory_assembly import WorkerFacts
from rollstream.schemas import ids
from rollstream.schemas.codec import decode, encode
from rollstream.schemas.errors import EngineError, SessionLostError
from rollstream.schemas.tasks import ChatMessage, EpisodeLimits, RewardSpec, RolloutTask, SamplingParams, ToolSpec
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.schemas.trajectories import Trajectory

CALL = '<tool_call>{"name": "calculator", "arguments": {}}</tool_call>'
FACTS = WorkerFacts(worker_id="w", model="m", tokenizer_hash="t", logprobs_mode="processed_logprobs")


class Tools:
    """Loses the session a number of times, then answers."""

    def __init__(self, losses: int = 0) -> None:
        self.losses = losses
        self.births: list[str] = []

    async def call(self, call: ToolCall, toolset: str) -> ToolResult:
        self.births.append(call.call_id)
        if self.losses > 0:
            self.losses -= 1
            raise SessionLostError("gone")
        return ToolResult(call_id=call.call_id, session_id=None, status="ok", content="42")


async def raising(episode: Episode) -> None:
    """An agent that fails of its own doing."""
    raise ValueError(f"no idea what to do with {episode.task.data_index}")


def task(agent: str = "react", reward: RewardSpec | None = None, **limits: float) -> RolloutTask:
    return RolloutTask(
        run_id="run",
        group_id=ids.group_id("run", 3),
        group_index=3,
        group_size=2,
        member_index=1,
        trajectory_id=ids.trajectory_id("run", 3, 1),
        messages=[ChatMessage(role="user", content="What is 6 * 7?")],
        tools=[ToolSpec(name="calculator", description="", parameters={})],
        agent=agent,
        reward=reward,
        sampling=SamplingParams(max_tokens=200),
        limits=EpisodeLimits(**limits),  # type: ignore[arg-type]  # the test's own numbers, int or float as declared
        data_source="test",
        data_index="test:3",
    )


def script(prompt: ScriptPrompt) -> str:
    return "The answer is 42." if "42" in prompt.text else CALL


async def run(
    of: RolloutTask,
    *,
    tools: Tools | None = None,
    engine: Engine | None = None,
    budgets: AttemptBudgets | None = None,
) -> tuple[Trajectory, list[int]]:
    starts: list[int] = []

    async def start(attempt: int) -> int:
        starts.append(attempt)
        return 100 + attempt

    async def pause(seconds: float) -> None:
        await asyncio.sleep(0)

    services = EpisodeServices(engine or ScriptedEngine(script), ByteChatFormat(), tools or Tools())
    runner = TaskRunner(services, FACTS, budgets or AttemptBudgets(), pause=pause)
    async with asyncio.timeout(20):
        trajectory = await runner.run(of, start)
    record = encode(trajectory)
    return decode(record.value, record.headers, Trajectory), starts


async def test_a_good_episode_is_completed_scored_and_says_where_it_comes_from() -> None:
    trajectory, starts = await run(task(reward=RewardSpec(name="numeric", answer="42")))
    assert (trajectory.status, trajectory.stop_reason, trajectory.reward) == ("completed", "stop", 1.0)
    assert (trajectory.group_index, trajectory.member_index, trajectory.data_index) == (3, 1, "test:3")
    assert (trajectory.attempt, trajectory.birth, starts) == (1, 101, [1])
    assert trajectory.num_turns == 2
    assert trajectory.metrics["tool_calls"] == 1
    assert trajectory.metrics["sampled_tokens"] == trajectory.samples[0].response_mask.sum()


async def test_a_wrong_answer_is_reward_zero_and_no_reward_is_null() -> None:
    wrong, _ = await run(task(reward=RewardSpec(name="numeric", answer="43")))
    unscored, _ = await run(task())
    assert wrong.reward == 0.0
    assert unscored.reward is None


async def test_a_cut_episode_is_truncated_and_scored_on_what_it_said() -> None:
    trajectory, _ = await run(task(reward=RewardSpec(name="numeric", answer="42"), max_turns=1))
    assert (trajectory.status, trajectory.stop_reason, trajectory.reward) == ("truncated", "max_turns", 0.0)
    assert len(trajectory.samples) == 1


async def test_a_lost_session_begins_a_fresh_attempt_with_ids_of_its_own() -> None:
    tools = Tools(losses=2)
    trajectory, starts = await run(task(), tools=tools)
    assert (trajectory.status, trajectory.attempt, trajectory.birth) == ("completed", 3, 103)
    assert (trajectory.infra_failures, trajectory.data_failures) == (2, 0)
    assert starts == [1, 2, 3]
    assert len(set(tools.births)) == 3


async def test_infrastructure_that_stays_away_ends_as_failed_without_samples_or_reward() -> None:
    trajectory, starts = await run(
        task(reward=RewardSpec(name="numeric", answer="42")),
        tools=Tools(losses=99),
        budgets=AttemptBudgets(infra=3, data=2),
    )
    assert (trajectory.status, trajectory.stop_reason) == ("failed", "infrastructure")
    assert trajectory.samples == []
    assert trajectory.reward is None
    assert trajectory.error is not None
    assert trajectory.error.type == "SessionLostError"
    assert starts == [1, 2, 3]


async def test_a_single_engine_failure_costs_an_attempt_and_no_more() -> None:
    class FailsOnce(ScriptedEngine):
        failures = 1

        async def generate(
            self,
            prompt_ids: Sequence[int],
            sampling: SamplingParams,
            request_id: str,
            *,
            max_tokens: int,
            stop_token_ids: Sequence[int],
        ) -> Generation:
            if self.failures:
                self.failures -= 1
                raise EngineError("out of memory")
            return await super().generate(
                prompt_ids, sampling, request_id, max_tokens=max_tokens, stop_token_ids=stop_token_ids
            )

    trajectory, _ = await run(task(), engine=FailsOnce(script))
    assert (trajectory.status, trajectory.infra_failures) == ("completed", 1)


async def test_an_agent_that_raises_is_tried_within_the_data_budget_and_says_why() -> None:
    trajectory, starts = await run(task(agent=f"{__name__}:raising"))
    assert (trajectory.status, trajectory.stop_reason) == ("failed", "agent_error")
    assert starts == [1, 2]
    assert trajectory.error is not None
    assert "no idea what to do with test:3" in trajectory.error.message


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        (task(agent="no-such-agent"), "no-such-agent"),
        (task(reward=RewardSpec(name="no-such-reward")), "no-such-reward"),
    ],
)
async def test_a_task_that_cannot_be_run_fails_and_names_the_cause(broken: RolloutTask, names: str) -> None:
    trajectory, _ = await run(broken)
    assert (trajectory.status, trajectory.stop_reason) == ("failed", "invalid_task")
    assert trajectory.error is not None
    assert names in trajectory.error.message
