"""One scenario from its first step to rest: the roles, what goes wrong, and the verdict."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

from simulator.adversary import Adversary
from simulator.model_and_tools import Surroundings, prepare_agent, tools_of
from simulator.narration import told_append, told_commit
from simulator.processes import Process, ProcessKilled, current_process
from simulator.roles import Roles, TrainerMemory, kafka_settings
from simulator.scenario import Profile, Scenario, scenario
from simulator.simulation import Simulation
from simulator.virtual_loop import StuckError, hushed
from simulator.witness import Witness

from rollstream.schemas.errors import EngineDeadError, SettingsError, TransientError, single_errors

REST_S = 400.0
"""Virtual seconds after the last fault within which everything must be done."""


@dataclass(frozen=True)
class Outcome:
    """What became of a seed."""

    seed: int
    violation: str | None
    steps: int
    digest: int
    virtual_s: float
    faults: int
    samples: int
    resampled: int
    statuses: Counter[str] = field(default_factory=Counter[str])


class World:
    """Slots of roles, each with a present process; restarts; the way to rest."""

    def __init__(self, plan: Scenario) -> None:
        self.plan = plan
        self.simulation = Simulation(plan.seed, plan.weather)
        self.rng = random.Random(f"world {plan.seed}")
        kafka = kafka_settings(plan.task_partitions, plan.call_partitions, plan.trajectory_partitions)
        self.kafka = kafka
        self.memory = TrainerMemory()
        self.around = Surroundings(
            random.Random(f"surroundings {plan.seed}"),
            plan.tasks,
            plan.engine_failure,
            self._kill_current,
            lambda sample, process: self.witness.sampled(sample, process),
        )
        self.witness = Witness(plan, kafka, self.simulation.cluster, self.around, self.violated)
        self.roles = Roles(plan, kafka, self.around, self.witness, self.memory, tools_of(self.around))
        self.present: dict[tuple[str, int], Process] = {}
        self.stops: dict[Process, asyncio.Event] = {}
        self.restarts_pending = 0
        self.faults = 0
        self._adversary = Adversary(self)
        self._at_rest_since: float | None = None
        self.begun_at = self.simulation.loop.time()

    def run(self) -> Outcome:
        """Everything."""
        simulation, plan = self.simulation, self.plan
        prepare_agent(plan.seed, plan.tasks)
        simulation.on_exit = self._exited
        with simulation.running(), self.roles.in_place():
            simulation.create_topics(self.kafka)
            simulation.cluster.on_append.append(self.witness.appended)
            simulation.cluster.on_commit.append(self.witness.committed)
            for slot in range(plan.workers):
                self.start("rollout", slot)
            for slot in range(plan.tool_workers):
                self.start("tools", slot)
            self.start("trainer", 0)
            self.start("producer", 0)
            self._adversary.arm()
            self._look_for_rest()
            try:
                verdict = simulation.run(until=self.begun_at + plan.faults_until + REST_S)
            except StuckError as error:
                verdict = f"I10: {error}"
            if verdict is None:
                verdict = f"I10: no rest {REST_S:.0f} s after the last fault: {self._unfinished()}"
            failures = list(simulation.loop.failures)
            steps, digest, now = simulation.loop.steps, simulation.loop.digest, simulation.loop.time()
        if verdict == "rest":
            verdict = f"unhandled: {failures[0]}" if failures else None
        return Outcome(
            plan.seed,
            verdict,
            steps,
            digest,
            now - self.begun_at,
            self.faults,
            self.witness.samples,
            self.witness.resampled,
            Counter(trajectory.status for _, trajectory in self.witness.published.values()),
        )

    def start(self, role: str, slot: int) -> Process:
        """A process that is the present one of its slot from now on."""
        stop = asyncio.Event()
        work: dict[str, Callable[[], object]] = {
            "rollout": lambda: self.roles.rollout_worker(slot, stop),
            "tools": lambda: self.roles.tool_worker(slot, stop),
            "trainer": self.roles.trainer,
            "producer": self.roles.producer,
        }
        if role == "trainer":
            self.memory.final_history = None
        process = self.simulation.start(f"{role}-{slot}", work[role])  # pyright: ignore[reportArgumentType]  -- coroutine functions
        self.present[role, slot] = process
        self.stops[process] = stop
        return process

    def kill(self, process: Process, away_s: float) -> None:
        """Kill it; if it is the present one of its slot, another takes its place."""
        self.simulation.kill(process)
        self.restart_later(process, away_s)

    def restart_later(self, process: Process, away_s: float) -> None:
        """As a supervisor does."""
        place = next((place for place, present in self.present.items() if present is process), None)
        if place is None:
            return
        self.restarts_pending += 1

        def restart() -> None:
            self.restarts_pending -= 1
            if self.present[place] is process:
                self.start(*place)

        self.simulation.cluster.later(away_s, restart)

    def tell(self, trace: Callable[[str], None]) -> None:
        """Say everything that happens."""
        self.simulation.trace = trace
        cluster = self.simulation.cluster
        cluster.on_append.append(lambda record, sender: self.note(told_append(record, sender)))
        cluster.on_commit.append(lambda group, place, commit: self.note(told_commit(group, place, commit)))

    def violated(self, what: str) -> None:
        """A promise is broken: the run ends."""
        self.simulation.end(what)

    def note(self, text: str) -> None:
        """For traces."""
        self.simulation.trace(f"{self.simulation.loop.time() - self.begun_at:8.3f}  {text}")

    def _kill_current(self) -> None:
        self.kill(current_process(), 0.2 + self.rng.random() * 3)
        raise ProcessKilled

    def _exited(self, process: Process, failure: BaseException | None) -> None:
        """A process has ended by itself."""
        errors = _single(failure)
        role = process.name.split("-")[0]
        for error in errors:
            is_twin = isinstance(error, SettingsError) and "another process seems to use" in str(error)
            is_dead_engine = isinstance(error, EngineDeadError) and self.plan.engine_failure > 0
            # Two at once: the second may see tasks before it sees what was said of them.
            is_early = role == "producer" and isinstance(error, SettingsError) and "nothing says under" in str(error)
            is_away = isinstance(error, TransientError) and role in ("trainer", "producer")
            if not (is_twin or is_dead_engine or is_early or is_away):
                self.violated(f"{process} ended by itself: {error!r}")
        if errors or role in ("rollout", "tools"):
            self.restart_later(process, 0.2 + self.rng.random() * 4)

    def _look_for_rest(self) -> None:
        loop = self.simulation.loop
        if loop.time() - self.begun_at > self.plan.faults_until and self._adversary.is_over and not self._unfinished():
            if self._at_rest_since is None:
                self._at_rest_since = loop.time()
            elif loop.time() - self._at_rest_since > 4:
                self._check_end()
                self.simulation.end("rest")
                return
        else:
            self._at_rest_since = None
        self.simulation.cluster.later(1.0, self._look_for_rest)

    def _unfinished(self) -> str:
        cluster, witness = self.simulation.cluster, self.witness
        if self.restarts_pending:
            return "processes are away"
        missing = [id_ for id_ in self.plan.tasks if id_ not in witness.published and id_ not in witness.buried]
        if missing:
            stories = [(id_, story and story.meaning()) for id_ in missing if (story := witness.story(id_)) or True]
            return f"not published: {str(stories)[:1500]}"
        group = cluster.groups[self.kafka.group("rollout-workers")]
        for log in cluster.partitions(self.kafka.topic("tasks")):
            for place, commit in group.committed.items():
                if place.partition == log.partition and commit.offset < log.end:
                    return f"tasks/{log.partition} is committed to {commit.offset} of {log.end}"
        if self.memory.final_history is None:
            return "the trainer has not ended"
        return ""

    def _check_end(self) -> None:
        self.witness.check_end()
        published = {id_: trajectory for id_, (_, trajectory) in self.witness.published.items()}
        if self.plan.deadlines:
            return
        trainable = {id_ for id_, trajectory in published.items() if trajectory.samples}
        history = set(self.memory.final_history or ())
        if history != trainable:
            self.violated(f"I7: the history lacks {trainable - history}, has {history - trainable} too much")


def run_seed(
    seed: int,
    profile: Profile | None = None,
    *,
    plant: Callable[[], AbstractContextManager[None]] = nullcontext,
    trace: Callable[[str], None] | None = None,
) -> Outcome:
    """One scenario, under a planted bug or not; a function of its arguments."""
    with hushed(), plant():
        return _run(scenario(seed, profile), trace)


def _run(plan: Scenario, trace: Callable[[str], None] | None) -> Outcome:
    world = World(plan)
    if trace is not None:
        world.tell(trace)
    return world.run()


def _single(failure: BaseException | None) -> list[BaseException]:
    if isinstance(failure, BaseExceptionGroup):
        return list(single_errors(cast("BaseExceptionGroup[BaseException]", failure)))
    return [] if failure is None else [failure]
