"""An episode as its agent sees it: generate, call tools, and nothing else reaches the outside.

Invariants: tokens are appended once and never rewritten; every effect is numbered and goes through the effect log; a
limit cuts the episode between effects, never inside a recorded one; infrastructure failures leave as TransientError
and never become text.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rollstream.rollout_workers.chat_format import ChatFormat
from rollstream.rollout_workers.effects import EffectLog, EffectSequence
from rollstream.rollout_workers.engine import Engine
from rollstream.rollout_workers.sample_building import RecordedGeneration, SampleBuilder, TurnOutcome
from rollstream.rollout_workers.tool_calling import (
    Observation,
    ToolCaller,
    ToolCalls,
    ToolRequest,
    TurnObservations,
    deciding_failure,
)
from rollstream.schemas.errors import DataError
from rollstream.schemas.tasks import RolloutTask

CutReason = Literal["max_turns", "max_tokens", "context_length", "wall_clock", "malformed"]


class EpisodeCut(Exception):
    """A limit was reached: the episode ends as ``truncated``. Agents let it pass."""

    def __init__(self, reason: CutReason) -> None:
        super().__init__(reason)
        self.reason: CutReason = reason


@dataclass(frozen=True, slots=True)
class AgentTurn:
    """One generation. ``tool_calls`` is what the model asks for; a malformed call is among them, with its error."""

    text: str
    tool_calls: tuple[ToolRequest, ...]


@dataclass(frozen=True, slots=True)
class EpisodeServices:
    """What episodes run on; shared by all episodes of a worker."""

    engine: Engine
    chat: ChatFormat
    tools: ToolCaller
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class AttemptIdentity:
    """Which attempt this is. ``birth``: journal offset of its first start; session and call ids are built on it."""

    attempt: int
    birth: int


class Episode:
    """One attempt at a task. Made by the worker, used by an agent.

    Raises:
        DataError: the prompt does not fit the model or cannot be rendered.
    """

    def __init__(self, task: RolloutTask, services: EpisodeServices, identity: AttemptIdentity, log: EffectLog) -> None:
        self.task = task
        self.random = random.Random(f"{task.trajectory_id}/{identity.attempt}")
        """Deterministic on replay: the only source of randomness for an agent."""
        self._services = services
        self._identity = identity
        self._effects = EffectSequence(log)
        self._sample = SampleBuilder(self._render_prompt())
        self._tools = ToolCalls(task, identity.birth, services.tools, clock=services.clock)
        self._last_ids: list[int] = []
        self._texts: list[str] = []
        self._observed: list[Observation] = []
        self._malformed_turns = 0
        self._ends_at = services.monotonic() + task.limits.wall_clock_s

    @property
    def sample(self) -> SampleBuilder:
        """The training sequence so far."""
        return self._sample

    @property
    def texts(self) -> Sequence[str]:
        """The text of every turn so far, for rewards; the ids remain the truth."""
        return tuple(self._texts)

    @property
    def observations(self) -> Sequence[Observation]:
        """Every answered tool call so far, in call order."""
        return tuple(self._observed)

    @property
    def malformed_turns(self) -> int:
        """Turns whose tool calls could not be parsed."""
        return self._malformed_turns

    async def now(self) -> float:
        """Unix seconds, the same on replay."""

        async def read(_: str) -> float:
            return self._services.clock()

        return await self._effects.perform("now", None, float, read)

    async def generate(self) -> AgentTurn:
        """Let the policy speak one turn.

        Raises:
            EpisodeCut: a limit is reached.
            TransientError: the engine failed; the attempt ends and another begins within the budget.
        """
        max_tokens, cut_reason = self._tokens_for_next_turn()
        generation = await self._effects.perform(
            "generate",
            (len(self._sample.ids), self._sample.ids[-64:], self.task.sampling, max_tokens),
            RecordedGeneration,
            lambda path: self._sample_turn(path, max_tokens),
        )
        self._sample.add_generation(generation)
        self._last_ids = generation.ids
        text = self._services.chat.decode_turn(generation.ids)
        self._texts.append(text)
        if generation.finish_reason == "abort":
            raise EpisodeCut("wall_clock")
        turn = self._read_turn(text)
        if generation.finish_reason == "length" and not turn.tool_calls:
            raise EpisodeCut(cut_reason)
        return turn

    async def call_tools(self, requests: Sequence[ToolRequest]) -> Sequence[Observation]:
        """Run the calls of the last turn beside one another and show the model their answers in call order.

        Raises:
            EpisodeCut: there is no turn left that could read the answers, or too many turns were malformed.
            TransientError: a session was lost or a worker did not answer.
        """
        if self._malformed_turns > self.task.limits.max_malformed_turns:
            raise EpisodeCut("malformed")
        if self._sample.num_turns >= self.task.limits.max_turns:
            raise EpisodeCut("max_turns")
        turn = self._sample.num_turns - 1
        answered = await self._effects.perform(
            "tools",
            [(request.name, request.arguments, request.error) for request in requests],
            TurnObservations,
            lambda _: self._tools.run(turn, requests),
        )
        self._tools.advance(turn, requests, answered.observations)
        self._observed.extend(answered.observations)
        self._sample.set_outcome(
            TurnOutcome(
                tool_calls=len(requests),
                is_malformed=any(not request.name for request in requests),
                tool_s=answered.tool_s,
            )
        )
        contents = [observation.content for observation in answered.observations]
        self._sample.add_observation(self._services.chat.render_tool_results(self._last_ids, contents))
        return answered.observations

    async def say(self, content: str) -> None:
        """Append a user message: for agents that play the other side of a conversation."""
        self._sample.add_observation(self._services.chat.render_user(self._last_ids, content))

    def _render_prompt(self) -> list[int]:
        prompt = self._services.chat.render_prompt(self.task.messages, self.task.tools)
        if len(prompt) >= self._services.engine.max_model_len:
            raise DataError(
                f"the prompt of trajectory {self.task.trajectory_id!r} ({self.task.data_index!r}) has {len(prompt)} "
                f"tokens, max_model_len is {self._services.engine.max_model_len}: shorten it or raise max_model_len"
            )
        return prompt

    def _tokens_for_next_turn(self) -> tuple[int, CutReason]:
        """How many tokens the next turn may have, and what has cut the episode if they are not enough."""
        limits = self.task.limits
        if self._sample.num_turns >= limits.max_turns:
            raise EpisodeCut("max_turns")
        budget = limits.max_response_tokens - self._sample.response_length
        if budget <= 0:
            raise EpisodeCut("max_tokens")
        room = self._services.engine.max_model_len - len(self._sample.ids)
        if room <= 0:
            raise EpisodeCut("context_length")
        allowed = min(self.task.sampling.max_tokens, budget)
        return (allowed, "max_tokens") if allowed <= room else (room, "context_length")

    async def _sample_turn(self, path: str, max_tokens: int) -> RecordedGeneration:
        started = self._services.monotonic()
        if started >= self._ends_at:
            raise EpisodeCut("wall_clock")
        request_id = f"{self.task.trajectory_id}-{self._identity.birth}-{path}"
        try:
            async with asyncio.TaskGroup() as group:
                alarm = group.create_task(self._abort_at_the_end(request_id))
                generation = await self._services.engine.generate(
                    self._sample.ids,
                    self.task.sampling,
                    request_id,
                    max_tokens=max_tokens,
                    stop_token_ids=self._services.chat.stop_token_ids,
                )
                alarm.cancel()
        except ExceptionGroup as failures:
            raise deciding_failure(failures) from failures
        return RecordedGeneration(
            ids=generation.ids,
            logprobs=generation.logprobs,
            finish_reason=generation.finish_reason,
            spans=generation.spans,
            generate_s=self._services.monotonic() - started,
        )

    async def _abort_at_the_end(self, request_id: str) -> None:
        await asyncio.sleep(max(0.0, self._ends_at - self._services.monotonic()))
        await self._services.engine.abort(request_id)

    def _read_turn(self, text: str) -> AgentTurn:
        parsed = self._services.chat.parse_turn(text)
        if parsed.kind == "none":
            return AgentTurn(text, ())
        if parsed.kind == "malformed":
            self._malformed_turns += 1
            return AgentTurn(text, (ToolRequest("", "", f"Error: malformed tool call: {parsed.reason}"),))
        return AgentTurn(
            text,
            tuple(
                ToolRequest(call.name, call.arguments_json, self._tools.refusal(call.name, index))
                for index, call in enumerate(parsed.calls)
            ),
        )
