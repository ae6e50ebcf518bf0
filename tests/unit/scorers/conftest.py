from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rollstream.schemas import ids
from rollstream.schemas.trajectories import Sample, Trajectory, TrajectoryError, Turn, VersionSpan


def made(
    group_index: int = 0, member_index: int = 0, *, text: str = "<think>7*6</think>42", **changes: Any
) -> Trajectory:
    """One trajectory whose ids are characters; ``status="failed"`` makes it one without samples."""
    response = np.array([ord(c) for c in text], dtype=np.int32)
    n = len(response)
    is_failed = changes.get("status") == "failed"
    sample = Sample(
        prompt_ids=np.array([ord(c) for c in "6*7?"], dtype=np.int32),
        response_ids=response,
        response_mask=np.ones(n, dtype=np.uint8),
        response_logprobs=np.full(n, -0.5, dtype=np.float32),
        version_spans=[VersionSpan(0, n, 0)],
        turns=[Turn(start=0, end=n, finish_reason="stop")],
    )
    fields: dict[str, Any] = {
        "run_id": "r",
        "trajectory_id": ids.trajectory_id("r", group_index, member_index),
        "group_id": ids.group_id("r", group_index),
        "group_index": group_index,
        "group_size": 3,
        "member_index": member_index,
        "status": "completed",
        "stop_reason": "infrastructure" if is_failed else "stop",
        "samples": [] if is_failed else [sample],
        "reward": None if is_failed else 1.0,
        "error": TrajectoryError(type="EngineError", message="died") if is_failed else None,
    }
    return Trajectory(**fields | changes)


@pytest.fixture(scope="session")
def make() -> Callable[..., Trajectory]:
    return made
