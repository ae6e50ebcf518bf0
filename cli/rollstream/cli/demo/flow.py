"""The state of the flow, folded from the records of all topics: what the live picture shows. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from rollstream.cli.demo.facts import TrajectoryFacts, mean_reward, split_evenly, tool_call_rate, trajectory_facts
from rollstream.cli.task_ledger import TaskLedger
from rollstream.schemas.control import ControlMessage, PolicyVersion, ProducerProgress, TrainerProgress, WorkerStatus
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.schemas.trajectories import Trajectory

FlowMessage = RolloutTask | ToolCall | ToolResult | Trajectory | ControlMessage

RECENT_TRAJECTORIES = 128
RECENT_S = 10.0
CURVE_POINTS = 40


@dataclass(frozen=True)
class FlowSnapshot:
    """One moment of the flow. Rates are over the last ten seconds, means over the last 128 trajectories."""

    tasks_emitted: int = 0
    tasks_open: int = 0
    episodes_running: int = 0
    tool_calls: int = 0
    tool_results: int = 0
    trajectories: int = 0
    failed: int = 0
    duplicates: int = 0
    policy_version: int | None = None
    policy_versions: int = 0
    trainer_version: int = 0
    groups_consumed: int = 0
    groups_dropped: int = 0
    staleness: float = 0.0
    max_staleness: int = 0
    reward: float | None = None
    tool_call_rate: float | None = None
    tokens_per_s: float = 0.0
    reward_curve: tuple[float, ...] = ()


@dataclass
class Flow:
    """Fold of one run: ``see`` every record, take a ``snapshot`` at any time."""

    ledger: TaskLedger
    facts: list[TrajectoryFacts] = field(default_factory=list[TrajectoryFacts])
    """The first record of every trajectory id, in order of arrival."""
    tool_calls: int = 0
    tool_results: int = 0
    newest_policy: PolicyVersion | None = None
    trainer: TrainerProgress | None = None
    _versions: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])
    """A restored trainer announces its policy again under another lineage: the same files are one version."""
    _policies: list[tuple[int, PolicyVersion]] = field(default_factory=list[tuple[int, PolicyVersion]])
    """(broker timestamp in ms, policy), oldest first."""
    _workers: dict[str, WorkerStatus] = field(default_factory=dict[str, WorkerStatus])

    def see(self, message: FlowMessage, log_order: tuple[int, int, int]) -> None:
        """Take in one record of any topic of the run."""
        match message:
            case RolloutTask():
                self.ledger.see_task(message)
            case Trajectory():
                if self.ledger.see_trajectory(message):
                    self.facts.append(trajectory_facts(message, log_order, self._policy_at(log_order[0])))
            case ToolCall():
                self.tool_calls += 1
            case ToolResult():
                self.tool_results += 1
            case PolicyVersion():
                self._see_policy(message, log_order[0])
            case TrainerProgress():
                self.trainer = message
            case ProducerProgress():
                self.ledger.see_progress(message)
            case WorkerStatus():
                self._workers[message.worker_id] = message
            case _:
                pass

    def _see_policy(self, policy: PolicyVersion, timestamp_ms: int) -> None:
        """One that is read after trajectories that came later, as when topics are read anew, counts for those too."""
        self._versions.add((policy.version, policy.manifest_sha256))
        newest = self.newest_policy
        if newest is None or _identity(policy) > _identity(newest):
            self.newest_policy = policy
        self._policies.append((timestamp_ms, policy))
        self._policies.sort(key=lambda published: (published[0], _identity(published[1])))
        for place, fact in enumerate(self.facts):
            if fact.log_order[0] >= timestamp_ms:
                self.facts[place] = fact.seen_under(self._policy_at(fact.log_order[0]))

    def _policy_at(self, timestamp_ms: int) -> PolicyVersion | None:
        """The newest policy that was out at a time of the broker."""
        place = bisect_right(self._policies, timestamp_ms, key=lambda published: published[0])
        return self._policies[place - 1][1] if place else None

    def roles(self) -> dict[str, str]:
        """Role -> state of the workers seen so far; a role is ``running`` as soon as one of its workers is."""
        states: dict[str, str] = {}
        for worker in self._workers.values():
            if states.get(worker.role) != "running":
                states[worker.role] = worker.state
        return states

    def in_log_order(self) -> list[TrajectoryFacts]:
        """All trajectories in the order in which the broker took them."""
        return sorted(self.facts, key=lambda fact: fact.log_order)

    def in_task_order(self) -> list[TrajectoryFacts]:
        """All trajectories in the order in which their tasks were emitted.

        What is compared over time is compared in this order: in the log, short episodes of a batch come before long
        ones, so that its beginning says more about short episodes than about an early policy.
        """
        return sorted(self.facts, key=lambda fact: fact.task_order)

    @property
    def policy_versions(self) -> int:
        """Versions published so far."""
        return len(self._versions)

    def snapshot(self, now_s: float) -> FlowSnapshot:
        """The flow at ``now_s`` (unix seconds)."""
        recent = self.facts[-RECENT_TRAJECTORIES:]
        curve = [mean_reward(part) for part in split_evenly(self.in_task_order(), CURVE_POINTS)]
        trainer = self.trainer
        return FlowSnapshot(
            tasks_emitted=self.ledger.emitted,
            tasks_open=self.ledger.emitted - self.ledger.ended,
            episodes_running=sum(
                worker.running
                for worker in self._workers.values()
                if worker.role == "rollout-worker" and worker.state != "stopped"
            ),
            tool_calls=self.tool_calls,
            tool_results=self.tool_results,
            trajectories=len(self.facts),
            failed=sum(fact.status == "failed" for fact in self.facts),
            duplicates=self.ledger.duplicates,
            policy_version=self.newest_policy.version if self.newest_policy else None,
            policy_versions=self.policy_versions,
            trainer_version=trainer.version if trainer else 0,
            groups_consumed=trainer.groups_consumed if trainer else 0,
            groups_dropped=trainer.groups_dropped if trainer else 0,
            staleness=sum(fact.staleness for fact in recent) / len(recent) if recent else 0.0,
            max_staleness=max((fact.staleness for fact in self.facts), default=0),
            reward=mean_reward(recent),
            tool_call_rate=tool_call_rate(recent),
            tokens_per_s=self._recent_tokens_per_s(now_s),
            reward_curve=tuple(point for point in curve if point is not None),
        )

    def _recent_tokens_per_s(self, now_s: float) -> float:
        tokens = 0
        for fact in reversed(self.facts):
            if fact.timestamp_s < now_s - RECENT_S:
                break
            tokens += fact.sampled_tokens
        return tokens / RECENT_S


def _identity(policy: PolicyVersion) -> tuple[int, int]:
    return policy.lineage, policy.version
