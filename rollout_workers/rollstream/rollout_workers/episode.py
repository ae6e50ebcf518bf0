"""An episode as its agent sees it: generate, call tools, and nothing else reaches the outside.

Invariants: tokens are appended once and never rewritten; every effect is numbered and goes through the effect log; what
depends on this process (its clock, its memory, its model's context) cuts an episode only where the journal ends, never
during replay; infrastructure failures leave as TransientError and never become text.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from rollstream.rollout_workers.chat_format import ChatFormat
from rollstream.rollout_workers.effects import AttemptIdentity, EffectLog, EffectSequence
from rollstream.rollout_workers.engine import Engine, PolicyRef
from rollstream.rollout_workers.episode_limits import EpisodeCut
from rollstream.rollout_workers.finishing import answer_given, finishes
from rollstream.rollout_workers.generation_log import OnGeneration, unheard
from rollstream.rollout_workers.sample_building import RecordedGeneration, SampleBuilder, TurnOutcome
from rollstream.rollout_workers.tool_calling import (
    Observation,
    ToolCaller,
    ToolCalls,
    ToolRequest,
    TurnObservations,
    deciding_failure,
)
from rollstream.schemas.errors import DataError, EngineError
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.schemas.tools import ToolResult

ABORT_GRACE_S = 120.0
"""For an aborted request to return; a policy that is being loaded holds it up."""


def pinned_policy(task: RolloutTask) -> PolicyRef | None:
    """The only weights that may draw the task's tokens; None: any."""
    return None if task.policy is UNSET else PolicyRef(task.policy.lineage, task.policy.version)


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
    on_generation: OnGeneration = unheard


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the lanes of one attempt have in common."""

    task: RolloutTask
    services: EpisodeServices
    identity: AttemptIdentity
    log: EffectLog
    lanes: list[Episode] = field(default_factory=list["Episode"])


class Episode:
    """One attempt at a task. Made by the worker, used by an agent.

    Raises:
        DataError: the prompt cannot be rendered.
    """

    def __init__(self, task: RolloutTask, services: EpisodeServices, identity: AttemptIdentity, log: EffectLog) -> None:
        prompt_ids = services.chat.render_prompt(task.messages, task.tools)
        self._open(_Shared(task, services, identity, log), lane="", prompt_ids=prompt_ids, parent=None)

    def _open(self, shared: _Shared, *, lane: str, prompt_ids: Sequence[int], parent: Episode | None) -> None:
        self.task = shared.task
        self.random = random.Random(f"{shared.task.trajectory_id}/{shared.identity.attempt}/{lane}")
        """Deterministic on replay: the only source of randomness for an agent."""
        self._shared = shared
        self._services = shared.services
        self._parent = parent
        self._effects = EffectSequence(shared.log, lane)
        self._sample = SampleBuilder(prompt_ids)
        self._tools = ToolCalls(
            shared.task,
            shared.identity.birth,
            shared.services.tools,
            lane=lane,
            clock=shared.services.clock,
            monotonic=shared.services.monotonic,
        )
        self._last_ids: list[int] = list(parent._last_ids) if parent is not None else []
        self._texts: list[str] = []
        self._observed: list[Observation] = []
        self._malformed_turns = 0
        self._answer: str | None = None
        self._spent_s = parent._spent_s if parent is not None else 0.0
        self._has_just_sampled = False
        shared.lanes.append(self)

    @property
    def lane(self) -> tuple[int, ...]:
        """Which branch this is, as numbers; () for the trunk."""
        return tuple(int(number) for number in self._effects.lane.split(".") if number)

    @property
    def parent(self) -> Episode | None:
        """The lane this one has branched from."""
        return self._parent

    @property
    def lanes(self) -> Sequence[Episode]:
        """The trunk and all branches, in an order that does not depend on how they ran."""
        return sorted(self._shared.lanes, key=lambda lane: lane.lane)

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
    def answer(self) -> str | None:
        """What the last successful call of the tool ``finish`` said; None: there was none."""
        return self._answer

    @property
    def final_text(self) -> str:
        """What is judged: the answer, else the text of the last turn."""
        if self._answer is not None:
            return self._answer
        return self._texts[-1] if self._texts else ""

    @property
    def malformed_turns(self) -> int:
        """Turns whose tool calls could not be parsed."""
        return self._malformed_turns

    async def now(self) -> float:
        """Unix seconds, the same on replay."""

        async def read(_: str) -> float:
            return self._services.clock()

        read_at, _ = await self._effects.perform("now", None, float, read)
        return read_at

    def branch(self, messages: Sequence[ChatMessage] | None = None) -> Episode:
        """A lane beside this one, with a conversation, a tool session and a training sample of its own.

        Lanes may run beside one another (in an ``asyncio.TaskGroup``) and replay in any order; within a lane one thing
        happens after the other. The limits of turns and tokens hold per lane.

        Args:
            messages: the conversation of a sub-agent; None: a copy of this one so far, as the prompt of the new sample.

        Raises:
            DataError: the messages cannot be rendered.
        """
        lane = f"{self._effects.reserve()}."
        if messages is None:
            prompt_ids: Sequence[int] = self._sample.ids
        else:
            prompt_ids = self._services.chat.render_prompt(messages, self.task.tools)
        branch = Episode.__new__(Episode)
        branch._open(self._shared, lane=lane, prompt_ids=prompt_ids, parent=self)
        return branch

    async def generate(self) -> AgentTurn:
        """Let the policy speak one turn.

        Raises:
            EpisodeCut: a limit is reached.
            TransientError: the engine failed; the attempt ends and another begins within the budget.
        """
        max_tokens = self._tokens_for_next_turn()
        generation, self._has_just_sampled = await self._effects.perform(
            "generate",
            (len(self._sample.ids), self._sample.ids[-64:], self.task.sampling, max_tokens),
            RecordedGeneration,
            lambda path: self._sample_turn(path, max_tokens),
        )
        self._spent_s += generation.generate_s
        self._sample.add_generation(generation)
        self._last_ids = generation.ids
        text = self._services.chat.decode_turn(generation.ids)
        self._texts.append(text)
        if generation.finish_reason == "abort":
            raise EpisodeCut("wall_clock")
        turn = self._read_turn(text)
        if generation.finish_reason == "length" and not turn.tool_calls:
            raise EpisodeCut(generation.limit)
        return turn

    async def call_tools(self, requests: Sequence[ToolRequest]) -> Sequence[Observation]:
        """Run the calls of the last turn beside one another and show the model their answers in call order.

        Raises:
            EpisodeCut: no turn is left that could read the answers and no call finishes, or too many were malformed.
            TransientError: a session was lost or a worker did not answer.
        """
        if self._malformed_turns > self.task.limits.max_malformed_turns:
            raise EpisodeCut("malformed")
        if self._sample.num_turns >= self.task.limits.max_turns and not any(map(finishes, requests)):
            raise EpisodeCut("max_turns")
        turn, is_first = self._sample.num_turns - 1, self._has_just_sampled
        answered, _ = await self._effects.perform(
            "tools",
            [(request.name, request.arguments, request.error) for request in requests],
            TurnObservations,
            lambda _: self._tools.run(turn, requests, is_first=is_first),
        )
        # What a call waited for a broker or a place is infrastructure's time, not the episode's.
        self._spent_s += max((observation.run_s for observation in answered.observations), default=0.0)
        self._tools.advance(turn, requests, answered.observations)
        self._observed.extend(answered.observations)
        for request, observation in zip(requests, answered.observations, strict=True):
            given = answer_given(request, observation)
            self._answer = self._answer if given is None else given
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

    async def grade(self, arguments: str, *, timeout_s: float, toolset: str | None) -> ToolResult:
        """The worker's, not the agent's: have what this lane has left behind graded, see ``ToolCalls.grade``."""
        return await self._tools.grade(self._sample.num_turns, arguments, timeout_s=timeout_s, toolset=toolset)

    async def say(self, content: str) -> None:
        """Append a user message: for agents that play the other side of a conversation."""
        self._sample.add_observation(self._services.chat.render_user(self._last_ids, content))

    def end_sessions(self) -> None:
        """The worker's, not the agent's: the attempt is over for good, see ``ToolCalls.end_session``."""
        for lane in self._shared.lanes:
            lane._tools.end_session()

    def _tokens_for_next_turn(self) -> int:
        """How many tokens the task allows the next turn; what the model has room for is asked when it is sampled."""
        limits = self.task.limits
        if self._sample.num_turns >= limits.max_turns:
            raise EpisodeCut("max_turns")
        budget = limits.max_response_tokens - self._sample.response_length
        if budget <= 0:
            raise EpisodeCut("max_tokens")
        return min(self.task.sampling.max_tokens, budget)

    async def _sample_turn(self, path: str, max_tokens: int) -> RecordedGeneration:
        room, left_s = self._room(), self.task.limits.wall_clock_s - self._spent_s
        if left_s <= 0:
            raise EpisodeCut("wall_clock")
        started = self._services.monotonic()
        identity = self._shared.identity
        self._services.on_generation(
            trajectory_id=self.task.trajectory_id, attempt=identity.attempt, birth=identity.birth, path=path
        )
        request_id = f"{self.task.trajectory_id}-{identity.birth}-{path}"
        try:
            async with asyncio.timeout(left_s + ABORT_GRACE_S), asyncio.TaskGroup() as group:
                alarm = group.create_task(self._abort_after(left_s, request_id))
                generation = await self._services.engine.generate(
                    self._sample.ids,
                    self.task.sampling,
                    request_id,
                    max_tokens=min(max_tokens, room),
                    stop_token_ids=self._services.chat.stop_token_ids,
                    policy=pinned_policy(self.task),
                )
                alarm.cancel()
        except TimeoutError as error:
            raise EngineError(
                f"request {request_id!r} did not return within {ABORT_GRACE_S:g} s of its abort: the engine hangs"
            ) from error
        except ExceptionGroup as failures:
            raise deciding_failure(failures) from failures
        return RecordedGeneration(
            ids=generation.ids,
            logprobs=generation.logprobs,
            finish_reason=generation.finish_reason,
            spans=generation.spans,
            generate_s=self._services.monotonic() - started,
            limit="max_tokens" if max_tokens <= room else "context_length",
        )

    def _room(self) -> int:
        """Tokens that fit behind what there is."""
        max_model_len = self._services.engine.max_model_len
        room = max_model_len - len(self._sample.ids)
        if room > 0:
            return room
        if self._sample.num_turns > 0:
            raise EpisodeCut("context_length")
        raise DataError(
            f"the prompt of trajectory {self.task.trajectory_id!r} ({self.task.data_index!r}) has "
            f"{len(self._sample.ids)} tokens, max_model_len is {max_model_len}: shorten it or raise max_model_len"
        )

    async def _abort_after(self, left_s: float, request_id: str) -> None:
        await asyncio.sleep(left_s)
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
