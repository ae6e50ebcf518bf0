"""The trajectory of a task, as a pure function of the task and of what its episode left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from rollstream.rollout_workers.budgets import stop_reason
from rollstream.rollout_workers.effects import AttemptIdentity
from rollstream.rollout_workers.episode import Episode
from rollstream.schemas.journal import AttemptFailure
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Sample, Status, StopReason, Timing, Trajectory, TrajectoryError

MAX_SIGNALS = 64
"""Of tool workers, in one trajectory."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a trajectory says about where it was made."""

    worker_id: str
    model: str
    tokenizer_hash: str
    logprobs_mode: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How an episode ended and what it is worth. ``reward`` None: not scored."""

    status: Status
    stop_reason: StopReason
    reward: float | None = None
    rewards: dict[str, float] = field(default_factory=dict[str, float])
    error: TrajectoryError | None = None


@dataclass(frozen=True, slots=True)
class Failures:
    """Attempts of the task that have failed before."""

    infra: int = 0
    data: int = 0


@dataclass(frozen=True, slots=True)
class EpisodeTimes:
    """Unix seconds."""

    started_at: float
    finished_at: float


def assemble(
    task: RolloutTask,
    facts: WorkerFacts,
    identity: AttemptIdentity,
    failures: Failures,
    ending: Ending,
    times: EpisodeTimes,
    episode: Episode | None,
) -> Trajectory:
    """Put the terminal record of a task together. ``episode`` is None iff nothing may be trained on."""
    lanes: Sequence[Episode] = episode.lanes if episode is not None else ()
    samples = _samples(lanes)
    spans = [span for sample in samples for span in sample.version_spans]
    lineage = max((span.lineage for span in spans), default=0)
    versions = [span.version for span in spans if span.lineage == lineage] or [0]
    turns = [turn for sample in samples for turn in sample.turns]
    return Trajectory(
        run_id=task.run_id,
        trajectory_id=task.trajectory_id,
        group_id=task.group_id,
        group_index=task.group_index,
        group_size=task.group_size,
        member_index=task.member_index,
        status=ending.status,
        stop_reason=ending.stop_reason,
        samples=samples,
        reward=ending.reward,
        rewards=ending.rewards,
        metrics=_metrics(samples, lanes),
        error=ending.error,
        is_train=task.is_train,
        num_turns=len(turns),
        attempt=identity.attempt,
        birth=identity.birth,
        lineage=lineage,
        policy_version_min=min(versions),
        policy_version_max=max(versions),
        infra_failures=failures.infra,
        data_failures=failures.data,
        model=facts.model,
        tokenizer_hash=facts.tokenizer_hash,
        sampling=task.sampling,
        logprobs_mode=facts.logprobs_mode,
        agent=task.agent,
        data_source=task.data_source,
        data_index=task.data_index,
        timing=Timing(
            created_at=task.created_at,
            started_at=times.started_at,
            finished_at=times.finished_at,
            generate_s=sum(turn.generate_s for turn in turns),
            tool_s=sum(turn.tool_s for turn in turns),
        ),
        worker_id=facts.worker_id,
        extra=task.extra,
        replacement=task.replacement,
    )


def failed(failure: AttemptFailure) -> Ending:
    """The ending of a task whose budget is spent, or that cannot be run at all."""
    error = TrajectoryError(type=failure.type, message=failure.message)
    return Ending("failed", stop_reason(failure), error=error)


def _samples(lanes: Sequence[Episode]) -> list[Sample]:
    """One per lane in which something was sampled, each after the one it has branched from."""
    samples: list[Sample] = []
    places: dict[Episode, int] = {}
    for lane in lanes:
        sample = lane.sample.build()
        if sample is None:
            continue
        if lane.parent is not None:
            sample = msgspec.structs.replace(sample, parent_sample=places.get(lane.parent), fork_reason="branch")
        places[lane] = len(samples)
        samples.append(sample)
    return samples


def _metrics(samples: Sequence[Sample], lanes: Sequence[Episode]) -> dict[str, float]:
    if not samples:
        return {}
    observations = [observation for lane in lanes for observation in lane.observations]
    signals: Counter[str] = Counter()
    for observation in observations:
        signals.update({f"tool_{name}": value for name, value in observation.metrics.items()})
        signals[f"tool_status_{observation.status}"] += 1
    sampled = sum(int(sample.response_mask.sum()) for sample in samples)
    return {
        "tool_calls": float(sum(turn.tool_calls for sample in samples for turn in sample.turns)),
        "tool_errors": float(sum(observation.status != "ok" for observation in observations)),
        "malformed_turns": float(sum(lane.malformed_turns for lane in lanes)),
        "sampled_tokens": float(sampled),
        "observed_tokens": float(sum(len(sample.response_ids) for sample in samples) - sampled),
        **{name: float(value) for name, value in sorted(signals.items())[:MAX_SIGNALS]},
    }
