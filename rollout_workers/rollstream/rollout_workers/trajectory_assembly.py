"""The trajectory of a task, as a pure function of the task and of what its episode left behind."""

from __future__ import annotations

from dataclasses import dataclass, field

from rollstream.rollout_workers.budgets import AttemptHistory
from rollstream.rollout_workers.episode import AttemptIdentity, Episode
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Sample, Status, StopReason, Timing, Trajectory, TrajectoryError


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
class EpisodeTimes:
    """Unix seconds."""

    started_at: float
    finished_at: float


def assemble(
    task: RolloutTask,
    facts: WorkerFacts,
    identity: AttemptIdentity,
    history: AttemptHistory,
    ending: Ending,
    times: EpisodeTimes,
    episode: Episode | None,
) -> Trajectory:
    """Put the terminal record of a task together. ``episode`` is None iff nothing may be trained on."""
    sample = episode.sample.build() if episode is not None else None
    versions = [(span.lineage, span.version) for span in sample.version_spans] if sample else [(0, 0)]
    return Trajectory(
        run_id=task.run_id,
        trajectory_id=task.trajectory_id,
        group_id=task.group_id,
        group_index=task.group_index,
        group_size=task.group_size,
        member_index=task.member_index,
        status=ending.status,
        stop_reason=ending.stop_reason,
        samples=[sample] if sample else [],
        reward=ending.reward,
        rewards=ending.rewards,
        metrics=_metrics(sample, episode),
        error=ending.error,
        is_train=task.is_train,
        num_turns=len(sample.turns) if sample else 0,
        attempt=identity.attempt,
        birth=identity.birth,
        lineage=max(versions)[0],
        policy_version_min=min(versions)[1],
        policy_version_max=max(versions)[1],
        infra_failures=history.infra,
        data_failures=history.data,
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
            generate_s=sum(turn.generate_s for turn in sample.turns) if sample else 0.0,
            tool_s=sum(turn.tool_s for turn in sample.turns) if sample else 0.0,
        ),
        worker_id=facts.worker_id,
        extra=task.extra,
    )


def _metrics(sample: Sample | None, episode: Episode | None) -> dict[str, float]:
    if sample is None or episode is None:
        return {}
    observations = episode.observations
    return {
        "tool_calls": float(sum(turn.tool_calls for turn in sample.turns)),
        "tool_errors": float(sum(observation.status != "ok" for observation in observations)),
        "malformed_turns": float(episode.malformed_turns),
        "sampled_tokens": float(sample.response_mask.sum()),
        "observed_tokens": float(len(sample.response_ids) - sample.response_mask.sum()),
    }
