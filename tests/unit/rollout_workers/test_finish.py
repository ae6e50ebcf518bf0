from __future__ import annotations

import inspect

from rollstream.rollout_workers import agents
from rollstream.rollout_workers.agents import react
from rollstream.rollout_workers.episode import AgentTurn, Episode
from rollstream.rollout_workers.tool_calling import Observation, ToolRequest


class Script:
    """An episode of few words."""

    def __init__(self, *turns: AgentTurn) -> None:
        self.turns = list(turns)
        self.answer: str | None = None
        self.called = 0

    async def generate(self) -> AgentTurn:
        return self.turns.pop(0)

    async def call_tools(self, requests: tuple[ToolRequest, ...]) -> list[Observation]:
        self.called += 1
        if any(request.name == "finish" for request in requests):
            self.answer = "42"
        return [Observation(status="ok", content="x") for _ in requests]


def turn(*names: str) -> AgentTurn:
    return AgentTurn("text", tuple(ToolRequest(name, "{}") for name in names))


async def test_a_turn_that_finishes_is_the_last_one() -> None:
    script = Script(turn("bash"), turn("bash", "finish"), turn("never"))
    await react(script)  # pyright: ignore[reportArgumentType] -- all that the agent uses
    assert (script.called, len(script.turns)) == (2, 1)


async def test_without_it_a_turn_without_calls_is_the_last_one() -> None:
    script = Script(turn("bash"), turn(), turn("never"))
    await react(script)  # pyright: ignore[reportArgumentType] -- all that the agent uses
    assert (script.called, len(script.turns)) == (1, 1)


def test_the_agent_uses_nothing_else_of_an_episode() -> None:
    used = set(inspect.getsource(agents.react).replace("await ", "").split())
    assert {"episode.generate()).tool_calls:", "episode.call_tools(turn.tool_calls)", "episode.answer"} <= used
    assert isinstance(inspect.getattr_static(Episode, "answer"), property)
