"""Episodes and trajectories of an evaluation, made up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rollstream.schemas import ids
from rollstream.schemas.trajectories import Sample, Trajectory, Turn, VersionSpan
from rollstream.trainers.evaluation import EpisodeFacts


@pytest.fixture(scope="session")
def episode() -> Callable[..., EpisodeFacts]:
    def make(group_index: int, member_index: int, reward: float | None, **facts: object) -> EpisodeFacts:
        known = {"environment": "gsm8k", "status": "completed", "prompt": f"test.jsonl:{group_index + 1}", **facts}
        return EpisodeFacts(group_index=group_index, member_index=member_index, reward=reward, **known)  # pyright: ignore[reportArgumentType]  -- facts are given by name

    return make


@pytest.fixture(scope="session")
def trajectory() -> Callable[..., Trajectory]:
    """One of two turns of three sampled tokens each, drawn by the policies (lineage, version) of the turns."""

    def make(*policies: tuple[int, int], **fields: object) -> Trajectory:
        drawn = policies or ((3, 7), (3, 7))
        spans = [VersionSpan(4 * i, 4 * i + 3, version, lineage) for i, (lineage, version) in enumerate(drawn)]
        mask = np.array([1, 1, 1, 0] * len(drawn), dtype=np.uint8)
        sample = Sample(
            prompt_ids=np.arange(1, 4, dtype=np.int32),
            response_ids=np.arange(len(mask), dtype=np.int32),
            response_mask=mask,
            response_logprobs=np.where(mask == 1, np.float32(-1), np.float32(0)),
            version_spans=spans,
            turns=[Turn(start=s.start, end=s.end, finish_reason="stop", tool_calls=2) for s in spans],
        )
        known: dict[str, object] = {
            "run_id": "run",
            "trajectory_id": ids.trajectory_id("run", 0, 0),
            "group_id": ids.group_id("run", 0),
            "group_index": 0,
            "group_size": 1,
            "member_index": 0,
            "status": "completed",
            "stop_reason": "stop",
            "samples": [sample],
            "reward": 1.0,
            "is_train": False,
            "num_turns": len(drawn),
            "data_source": "gsm8k",
            "data_index": "test.jsonl:1",
            **fields,
        }
        return Trajectory(**known)  # pyright: ignore[reportArgumentType]  -- fields are given by name

    return make
