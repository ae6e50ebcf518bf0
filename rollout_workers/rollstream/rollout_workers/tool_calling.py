"""The tool calls of an episode: which are sent, under which ids, in which session, and what counts as an answer.

Invariants: a call leaves only after the generation that asked for it is recorded; one turn's calls are answered by one
sandbox; our own time-outs and lost sessions end the attempt and never become text.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from rollstream.schemas import ids
from rollstream.schemas.errors import SessionLostError, TransientError, single_errors
from rollstream.schemas.tasks import RolloutTask, ToolSpec
from rollstream.schemas.tools import GRADE_TOOL, OBSERVABLE_STATUSES, RESERVED_PREFIX, ToolCall, ToolResult, ToolStatus

SIGNAL_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
MAX_SIGNALS = 32
GRADING_ALLOWANCE_S = 60.0
"""Beyond twice its own time: artefacts are taken and fresh sandboxes opened."""


class ToolCaller(Protocol):
    """Runs one tool call somewhere else and waits for its answer."""

    async def call(self, call: ToolCall, toolset: str) -> ToolResult:
        """Return the answer, resending the same call until there is one.

        Raises:
            TransientError: no answer before the call's deadline.
        """
        ...

    def end_session(self, session_id: str, toolset: str) -> None:
        """Return at once; the session's worker is told that it is over, or finds out by itself."""
        ...


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A call as the model wrote it. ``error`` is set when it cannot be run and is answered with that text.

    A turn whose calls could not be parsed is one request without a name.
    """

    name: str
    arguments: str
    error: str | None = None


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One answered tool call as the journal keeps it."""

    status: ToolStatus
    content: str
    incarnation: str | None = None
    token: str | None = None
    is_truncated: bool = False
    run_s: float = 0.0
    metrics: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Signals of the tool worker: refused system calls, attempts at the network, limits that ended a program."""


class TurnObservations(msgspec.Struct, frozen=True):
    """The answers of one turn, in call order."""

    observations: list[Observation]
    tool_s: float


class ToolSession:
    """The sandbox of one attempt and lane as the log knows it: its incarnation and the calls it has answered."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self._incarnation: str | None = None
        self._answered: list[str] = []

    @property
    def token(self) -> str | None:
        """The state the next call expects; None while the session has never answered."""
        if self._incarnation is None:
            return None
        return ids.session_token(self._incarnation, self._answered)

    def check(self, answers: Sequence[Observation]) -> None:
        """Before a turn's answers are recorded.

        Raises:
            SessionLostError: they come from another sandbox than the turns before, or from several.
        """
        incarnations = {answer.incarnation for answer in answers if answer.incarnation is not None}
        if len(incarnations | ({self._incarnation} - {None})) > 1:
            raise SessionLostError(
                f"session {self.session_id!r} was answered by sandboxes {sorted(incarnations)}, its state is in "
                f"{self._incarnation!r}"
            )

    def advance(self, answered: Mapping[str, Observation]) -> None:
        """Take note of a turn's recorded answers by call id."""
        for call_id, observation in answered.items():
            if observation.incarnation is not None:
                self._incarnation = observation.incarnation
                self._answered.append(call_id)


class ToolCalls:
    """Sends the calls of an episode's turns. One per attempt and lane."""

    def __init__(
        self,
        task: RolloutTask,
        birth: int,
        caller: ToolCaller,
        *,
        lane: str = "",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._task = task
        self._birth = birth
        self._lane = lane
        self._caller = caller
        self._clock = clock
        self._specs = {spec.name: spec for spec in task.tools}
        self._session = ToolSession(ids.session_id(task.trajectory_id, birth, lane))
        self._used_toolsets: set[str] = set()
        """Where the session may be open."""

    def refusal(self, name: str, index: int) -> str | None:
        """Why the ``index``-th call of a turn is not sent, as the model reads it; None if it is."""
        limit = self._task.limits.max_tool_calls_per_turn
        if index >= limit:
            return f"Error: not run: at most {limit} tool calls in one turn"
        if name not in self._specs or name.startswith(RESERVED_PREFIX):
            return f"Error: unknown tool {name!r}; the tools are: {', '.join(sorted(self._specs)) or 'none'}"
        return None

    async def run(self, turn: int, requests: Sequence[ToolRequest], *, is_first: bool = False) -> TurnObservations:
        """Run the calls of a turn beside one another.

        Args:
            turn: of this lane.
            requests: its calls.
            is_first: nobody but us can ever have sent them: we have just sampled them ourselves.

        Raises:
            TransientError: a call was not answered, or not by a tool; SessionLostError if its session is gone, or is
                another sandbox than before.
        """
        started = self._monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                running = [
                    group.create_task(self._run_one(turn, index, request, is_first))
                    for index, request in enumerate(requests)
                ]
        except ExceptionGroup as failures:
            raise deciding_failure(failures) from failures
        answers = [task.result() for task in running]
        self._session.check(answers)
        return TurnObservations(answers, self._monotonic() - started)

    def advance(self, turn: int, requests: Sequence[ToolRequest], answers: Sequence[Observation]) -> None:
        """The answers are recorded: the next turn's calls expect the session in the state after them."""
        self._used_toolsets.update(
            self._specs[request.name].toolset
            for request, answer in zip(requests, answers, strict=True)
            if answer.incarnation is not None
        )
        self._session.advance(
            {
                self._call_id(turn, index, request): answer
                for index, (request, answer) in enumerate(zip(requests, answers, strict=True))
            }
        )

    async def grade(self, turn: int, arguments: str, *, timeout_s: float, toolset: str | None) -> ToolResult:
        """Have the worker that holds the session grade what is in it.

        Args:
            turn: one that no call of the model's has.
            arguments: of the grader; they never reach the session's sandbox.
            timeout_s: of the grading.
            toolset: who grades when there is no session; with one, its worker does.

        Raises:
            TransientError: it was not graded; SessionLostError if the session is gone.
        """
        token = self._session.token
        where = next(iter(sorted(self._used_toolsets)), None) if token is not None else None
        stateful = (spec.toolset for spec in self._task.tools if spec.is_stateful)
        where = where or toolset or next(stateful, "default")
        result = await self._caller.call(
            ToolCall(
                call_id=ids.call_id(self._task.trajectory_id, self._birth, f"{self._lane}grade", 0, arguments),
                session_id=self._session.session_id if token is not None else None,
                turn=turn,
                token=token,
                tool=GRADE_TOOL,
                arguments=arguments,
                deadline=self._clock() + 2 * timeout_s + GRADING_ALLOWANCE_S,
                timeout_s=timeout_s,
                reply_topic="",
                reply_partition=0,
                is_first=False,
                trajectory_id=self._task.trajectory_id,
            ),
            where,
        )
        if result.status == "session_lost":
            raise SessionLostError(f"session {result.session_id!r} is gone: {result.content}")
        if result.status not in OBSERVABLE_STATUSES:
            raise TransientError(f"the episode was not graded, {result.status}: {result.content}")
        return result

    def end_session(self) -> None:
        """The attempt is over for good: whatever keeps its session open may close it.

        To be called only when `end` or `attempt_end` of this birth counts in the journal. The session's name holds the
        birth, so no call will ever be sent in it again by anybody but a zombie, which no journal listens to: the order
        can be late, repeated or a zombie's own without doing harm.
        """
        for toolset in self._used_toolsets:
            self._caller.end_session(self._session.session_id, toolset)

    async def _run_one(self, turn: int, index: int, request: ToolRequest, is_first: bool) -> Observation:
        if request.error is not None:
            return Observation(status="error", content=request.error)
        spec = self._specs[request.name]
        timeout_s = self._task.limits.tool_timeout_s
        if spec.is_stateful:
            self._used_toolsets.add(spec.toolset)
        result = await self._caller.call(
            ToolCall(
                call_id=self._call_id(turn, index, request),
                session_id=self._session.session_id if spec.is_stateful else None,
                turn=turn,
                token=self._session.token if spec.is_stateful else None,
                tool=spec.name,
                arguments=request.arguments,
                deadline=self._clock() + answer_allowance_s(spec, timeout_s),
                timeout_s=timeout_s,
                reply_topic="",
                reply_partition=0,
                is_first=is_first,
                trajectory_id=self._task.trajectory_id,
                workspace=self._task.workspace if spec.is_stateful else msgspec.UNSET,
            ),
            spec.toolset,
        )
        if result.status == "session_lost":
            raise SessionLostError(f"session {result.session_id!r} is gone: {result.content}")
        if result.status not in OBSERVABLE_STATUSES:
            raise TransientError(f"call {result.call_id!r} of {spec.name!r} ended as {result.status}: {result.content}")
        return Observation(
            status=result.status,
            content=result.content,
            incarnation=result.incarnation,
            token=result.token,
            is_truncated=result.is_truncated,
            run_s=result.run_s,
            metrics=trusted_signals(result.metrics),
        )

    def _call_id(self, turn: int, index: int, request: ToolRequest) -> str:
        return ids.call_id(self._task.trajectory_id, self._birth, f"{self._lane}{turn}", index, request.arguments)


def trusted_signals(metrics: Mapping[str, float]) -> dict[str, float]:
    """Finite numbers under plain names, few of them: the worker that sends them runs model-written code."""
    kept = {
        name: float(value)
        for name, value in metrics.items()
        if SIGNAL_NAME.fullmatch(name) and math.isfinite(value) and value >= 0
    }
    return dict(sorted(kept.items())[:MAX_SIGNALS])


def answer_allowance_s(spec: ToolSpec, timeout_s: float) -> float:
    """Seconds until a call is given up: tool time, queueing as long again, and a session or a worker starting anew."""
    return 2 * timeout_s + (30.0 if spec.is_stateful else 15.0)


def deciding_failure(failures: ExceptionGroup[Exception]) -> Exception:
    """The failure that decides what happens next: an infrastructure failure before any other, else the first."""
    leaves = list(single_errors(failures))
    return next((leaf for leaf in leaves if isinstance(leaf, TransientError)), leaves[0])
