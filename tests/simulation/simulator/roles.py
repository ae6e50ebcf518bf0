"""The roles as production code has them, in simulated processes. Only what is behind them is the simulation's."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from simulator.model_and_tools import ScriptedModel, Surroundings
from simulator.scenario import RUN_ID, Scenario
from simulator.stand_ins import replaced
from simulator.witness import Witness

from rollstream.producers.service import produce
from rollstream.producers.settings import ProducerSettings
from rollstream.rollout_workers import attempts, task_in_hand
from rollstream.rollout_workers import service as rollout_service
from rollstream.rollout_workers.episode import Episode
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas.tasks import EpisodeLimits, RolloutTask
from rollstream.tool_workers import service as tool_service
from rollstream.tool_workers.registry import ToolRegistry
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.trainers.stream import AsyncTrajectoryStream
from rollstream.transport import control, heartbeat, tool_client
from rollstream.transport.settings import KafkaSettings

PACES = [(heartbeat, "INTERVAL_S", 20.0), (control, "POLL_S", 4.0), (tool_client, "FETCH_TIMEOUT_S", 4.0)]
"""Idle work is most of what a quiet pipeline does: it is done less often here."""
MARK = "simulated task"


@dataclass
class Checkpoint:
    """What a trainer has saved: its model is its history."""

    state: dict[str, Any]
    history: list[str]


@dataclass
class TrainerMemory:
    """What survives a trainer."""

    checkpoints: list[Checkpoint] = field(default_factory=list[Checkpoint])
    final_history: list[str] | None = None


@cache
def kafka_settings(tasks: int, calls: int, trajectories: int) -> KafkaSettings:
    """Settings of a small cluster."""
    return KafkaSettings(
        bootstrap="simulated:9092",
        prefix="s.",
        session_timeout_s=3.0,
        partitions={
            "tasks": tasks,
            "tool-calls.default": calls,
            "tool-results": 3,
            "trajectories": trajectories,
            "dead-letters": 1,
        },
    )


_folder = tempfile.TemporaryDirectory(prefix="simulated-prompts-")


@cache
def prompts(rows: int) -> Path:
    """A file with so many prompts."""
    path = Path(_folder.name) / f"{rows}.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{MARK} {row}"}) + "\n" for row in range(rows)))
    return path


@dataclass(frozen=True)
class Roles:
    """Coroutines of the roles of one scenario."""

    plan: Scenario
    kafka: KafkaSettings
    around: Surroundings
    witness: Witness
    memory: TrainerMemory
    tools: ToolRegistry

    async def rollout_worker(self, slot: int, stop: asyncio.Event) -> None:
        """One rollout worker."""
        settings = RolloutWorkerSettings.model_validate(
            {
                "engine": {"kind": "scripted"},
                "worker_id": f"rollout-{slot}",
                "instance_id": f"rollout-{slot}" if self.plan.is_static else None,
                "max_running_episodes": self.plan.slots,
                "drain_s": 2.0,
                "follow_policy": False,
            }
        )
        await rollout_service.run_rollout_worker(settings, self.kafka, stop)

    async def tool_worker(self, slot: int, stop: asyncio.Event) -> None:
        """One tool worker."""
        settings = ToolWorkerSettings(
            worker_id=f"tools-{slot}",
            instance_id=f"tools-{slot}" if self.plan.is_static else None,
            idle_session_s=600.0,
            drain_s=2.0,
        )
        await tool_service.run_tool_worker(settings, self.kafka, stop)

    async def producer(self) -> None:
        """The producer of the run."""
        settings = ProducerSettings(
            source=str(prompts(self.plan.groups)),
            run_id=RUN_ID,
            tools=tuple(self.tools.specs()),
            agent="simulated",
            limits=EpisodeLimits(wall_clock_s=self.plan.wall_clock_s, tool_timeout_s=20.0),
            group_size=self.plan.group_size,
        )
        await produce(settings, self.kafka, asyncio.Event())

    async def trainer(self) -> None:
        """A trainer, restored from its newest checkpoint."""
        rng, memory = self.around.rng, self.memory
        stream = AsyncTrajectoryStream(
            self.kafka,
            groups_per_batch=self.plan.groups_per_batch,
            pipeline_depth=self.plan.pipeline_depth,
            min_members=1,
            max_staleness=None,
            needs_reward=False,
            group_deadline_s=self.plan.group_deadline_s,
            timeout_s=1e6,
        )
        async with stream:
            history: list[str] = []
            if memory.checkpoints:
                history = list(memory.checkpoints[-1].history)
                stream.load_state_dict(memory.checkpoints[-1].state)
            async for batch in stream:
                await asyncio.sleep(rng.random() * 0.5)
                trajectories = list(batch.trajectories())
                history += [trajectory.trajectory_id for trajectory in trajectories]
                self.witness.trained(history, trajectories)
                if rng.random() < 0.5:
                    memory.checkpoints.append(Checkpoint(stream.state_dict(), list(history)))
                    del memory.checkpoints[:-4]
                    await stream.commit()
        memory.final_history = history

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Production code builds its engine, tools and sandboxes from the simulation while the block lasts."""

        async def build_engine(*_: object) -> ScriptedModel:
            return ScriptedModel(self.around)

        async def start_sandboxes(*_: object) -> tool_service.StartedSandboxes:
            return tool_service.StartedSandboxes(self.around, ())  # pyright: ignore[reportArgumentType]  -- an opener

        decode_task = task_in_hand.read_task

        def read_task(record: Any, id_: str) -> RolloutTask:
            if self._poison(id_) == "decode":
                self.around.take_poison(id_)
            return decode_task(record, id_)

        make_episode = Episode

        def episode(task: RolloutTask, *arguments: Any) -> Episode:
            if self._poison(task.trajectory_id) == "render":
                self.around.take_poison(task.trajectory_id)
            return make_episode(task, *arguments)

        def tools(_: object) -> ToolRegistry:
            return self.tools

        seams: list[tuple[object, str, object]] = [
            *PACES,
            (rollout_service, "build_engine", build_engine),
            (attempts, "Episode", episode),
            (task_in_hand, "read_task", read_task),
            (tool_service, "load_tools", tools),
            (tool_service, "start_sandboxes", start_sandboxes),
        ]
        with ExitStack() as stack:
            for owner, name, value in seams:
                stack.enter_context(replaced(owner, name, value))
            yield

    def _poison(self, id_: str) -> str | None:
        task = self.plan.tasks.get(id_)
        return task.poison if task is not None else None
