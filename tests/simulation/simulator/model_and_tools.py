"""What stands in for the world behind the roles: a scripted model, sandboxes that keep a record, an agent.

Every sampled turn carries a number of its own, every tool answer names its sandbox and the turn it answers, so that a
trajectory shows by itself whether its parts belong together.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simulator.processes import Process, current_process
from simulator.scenario import TaskPlan

from rollstream.rollout_workers.agents import agent
from rollstream.rollout_workers.byte_chat_format import END_OF_MESSAGE_ID, ROLE_IDS
from rollstream.rollout_workers.engine import Generation, PolicyKind, PolicyRef
from rollstream.rollout_workers.episode import Episode
from rollstream.schemas.errors import EngineDeadError, EngineError
from rollstream.schemas.tasks import SamplingParams
from rollstream.schemas.trajectories import VersionSpan
from rollstream.tool_workers.functions import declared_tool, tool
from rollstream.tool_workers.registry import ToolRegistry
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox

MAX_MODEL_LEN = 100_000


@dataclass(frozen=True)
class Sampled:
    """One generation that has begun."""

    number: int
    trajectory_id: str
    birth: int
    path: str


@dataclass(eq=False)
class RecordingSandbox:
    """Keeps what ran in it."""

    number: int
    ran: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """(sample, call) in order."""
    is_closed: bool = False

    @property
    def is_alive(self) -> bool:
        """Until it is closed."""
        return not self.is_closed

    async def close(self) -> None:
        """End it."""
        self.is_closed = True


@dataclass
class Surroundings:
    """Shared by all processes of a simulation: what really happened, whoever remembers it."""

    rng: random.Random
    tasks: dict[str, TaskPlan]
    engine_failure: float
    kill_current: Callable[[], None]
    on_sample: Callable[[Sampled, Process], None]
    samples: list[Sampled] = field(default_factory=list[Sampled])
    sandboxes: list[RecordingSandbox] = field(default_factory=list[RecordingSandbox])
    payments: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    poison_kills: dict[str, int] = field(default_factory=dict[str, int])

    async def open(self) -> RecordingSandbox:
        """A fresh sandbox."""
        await asyncio.sleep(0.02 + self.rng.random() * 0.1)
        sandbox = RecordingSandbox(len(self.sandboxes))
        self.sandboxes.append(sandbox)
        return sandbox

    def take_poison(self, trajectory_id: str) -> None:
        """The task kills the process that touches it."""
        self.poison_kills[trajectory_id] = self.poison_kills.get(trajectory_id, 0) + 1
        self.kill_current()


class ScriptedModel:
    """An ``Engine``: asks for the tool calls the task's plan says, then ends."""

    logprobs_mode = "processed_logprobs"
    max_model_len = MAX_MODEL_LEN
    policy = PolicyRef()
    serves_adapters = False
    held_policies: frozenset[PolicyRef] = frozenset()

    def __init__(self, surroundings: Surroundings) -> None:
        self._around = surroundings
        self._aborted: dict[str, asyncio.Event] = {}

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
        """See ``Engine``."""
        assert policy in (None, self.policy), "the simulation pins nothing"
        around = self._around
        trajectory_id, birth, path = request_id.split("-", 2)
        sampled = Sampled(len(around.samples), trajectory_id, int(birth), path)
        around.samples.append(sampled)
        around.on_sample(sampled, current_process())
        aborted = self._aborted[request_id] = asyncio.Event()
        turn = sum(token == ROLE_IDS["assistant"] for token in prompt_ids) - 1
        plan = around.tasks[trajectory_id]
        if plan.poison == "turn" and turn == 1:
            around.take_poison(trajectory_id)
        try:
            async with asyncio.timeout(around.rng.choice((0.02, 0.1, 0.5, 2.0)) * (0.5 + around.rng.random())):
                await aborted.wait()
        except TimeoutError:
            self._fail_sometimes()
            return _generation([*_turn_text(plan, turn, sampled.number).encode(), END_OF_MESSAGE_ID], "stop")
        return _generation(list(f"cut {sampled.number}".encode()), "abort")

    async def abort(self, request_id: str) -> None:
        """See ``Engine``."""
        if request_id in self._aborted:
            self._aborted[request_id].set()

    async def update_weights(self, path: Path | None, policy: PolicyRef, *, kind: PolicyKind = "full") -> None:
        """There are no weights."""
        raise AssertionError(f"policy {policy} ({kind}) at {path}: the simulation announces none")

    async def hold_adapter(self, path: Path, policy: PolicyRef) -> None:
        """There are no adapters."""
        raise AssertionError(f"adapter {policy} at {path}: the simulation pins nothing")

    def release_adapter(self, policy: PolicyRef) -> None:
        """Nothing is held."""

    async def close(self) -> None:
        """See ``Engine``."""

    def _fail_sometimes(self) -> None:
        if self._around.rng.random() < self._around.engine_failure:
            if self._around.rng.random() < 0.2:
                raise EngineDeadError("the simulated engine has died")
            raise EngineError("the simulated engine failed")


def _generation(ids: list[int], finish_reason: str) -> Generation:
    return Generation(ids, [-0.5] * len(ids), finish_reason, [VersionSpan(0, len(ids), 0, 0)])  # pyright: ignore[reportArgumentType]


def _turn_text(plan: TaskPlan, turn: int, number: int) -> str:
    text = f"turn {number}"
    if turn >= plan.turns - 1:
        return text
    name = "pay" if plan.pays else "step"
    for call in range(plan.calls[turn]):
        arguments = {"sample": number, "call": call}
        text += f"\n<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
    return text


def tools_of(surroundings: Surroundings) -> ToolRegistry:
    """One tool with a state, one that must not run twice."""
    rng = surroundings.rng

    @tool(stateful=True)
    async def step(sample: int, call: int, sandbox: Sandbox) -> str:
        """Go one step.

        Args:
            sample: Number of the turn.
            call: Number of the call in it.
        """
        assert isinstance(sandbox, RecordingSandbox)
        await asyncio.sleep(rng.random() * rng.choice((0.02, 0.3)))
        if sandbox.is_closed or rng.random() < surroundings.engine_failure / 2:
            raise SandboxLostError("the simulated sandbox is gone")
        sandbox.ran.append((sample, call))
        await asyncio.sleep(rng.random() * rng.choice((0.02, 0.3)))
        return json.dumps({"sandbox": sandbox.number, "sample": sample, "call": call})

    @tool(is_idempotent=False)
    async def pay(sample: int, call: int) -> str:
        """Pay once.

        Args:
            sample: Number of the turn.
            call: Number of the call in it.
        """
        await asyncio.sleep(rng.random() * 0.2)
        surroundings.payments.append((sample, call))
        return json.dumps({"sandbox": None, "sample": sample, "call": call})

    found = [declared for function in (step, pay) if (declared := declared_tool(function)) is not None]
    return ToolRegistry(found)


_wavering = random.Random(0)


@agent("simulated")
async def simulated_agent(episode: Episode) -> None:
    """ReAct; with a task that wavers, not always the same."""
    while (turn := await episode.generate()).tool_calls:
        await episode.call_tools(turn.tool_calls)
        if episode.task.trajectory_id in WAVERING and _wavering.random() < 0.2:
            await episode.say(f"hm {_wavering.random()}")


WAVERING: set[str] = set()
"""Ids of the tasks of the running scenario whose agent wavers."""


def prepare_agent(seed: int, tasks: dict[str, TaskPlan]) -> None:
    """The agent of a scenario."""
    _wavering.seed(f"wavering {seed}")
    WAVERING.clear()
    WAVERING.update(task for task, plan in tasks.items() if plan.wavers)
