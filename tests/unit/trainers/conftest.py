"""Synthetic trajectories for tests of the pure parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rollstream.schemas import ids
from rollstream.schemas.trajectories import Sample, Trajectory, TrajectoryError, Turn, VersionSpan

MakeTrajectory = Callable[..., Trajectory]


def sample_of(tokens: int, *, version: int, lineage: int, prompt: int = 3, is_trainable: bool = True) -> Sample:
    """``tokens`` sampled ids after ``prompt`` ids of a prompt."""
    return Sample(
        prompt_ids=np.arange(1, prompt + 1, dtype=np.int32),
        response_ids=np.arange(100, 100 + tokens, dtype=np.int32),
        response_mask=np.ones(tokens, dtype=np.uint8),
        response_logprobs=np.full(tokens, -0.5, dtype=np.float32),
        version_spans=[VersionSpan(0, tokens, version, lineage)],
        turns=[Turn(start=0, end=tokens, finish_reason="stop")],
        is_trainable=is_trainable,
    )


def build(
    group_index: int,
    member_index: int,
    *,
    group_size: int = 2,
    run_id: str = "run",
    version: int = 0,
    lineage: int = 0,
    reward: float | None = 1.0,
    tokens: int = 2,
    is_failed: bool = False,
    is_train: bool = True,
    is_trainable: bool = True,
    is_truncated: bool = False,
    replacement: int = 0,
    worker_id: str = "w",
) -> Trajectory:
    """One terminal trajectory."""
    samples = [sample_of(tokens, version=version, lineage=lineage, is_trainable=is_trainable)]
    return Trajectory(
        run_id=run_id,
        trajectory_id=ids.trajectory_id(run_id, group_index, member_index, replacement),
        group_id=ids.group_id(run_id, group_index),
        group_index=group_index,
        group_size=group_size,
        member_index=member_index,
        status="failed" if is_failed else "truncated" if is_truncated else "completed",
        stop_reason="infrastructure" if is_failed else "max_tokens" if is_truncated else "stop",
        samples=[] if is_failed else samples,
        reward=None if is_failed else reward,
        error=TrajectoryError(type="EngineError", message="died") if is_failed else None,
        is_train=is_train,
        num_turns=0 if is_failed else 1,
        lineage=0 if is_failed else lineage,
        policy_version_min=0 if is_failed else version,
        policy_version_max=0 if is_failed else version,
        replacement=replacement,
        worker_id=worker_id,
    )


@pytest.fixture(scope="session")
def make_trajectory() -> MakeTrajectory:
    return build
