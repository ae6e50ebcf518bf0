from __future__ import annotations

import msgspec
import pytest

from rollstream.rollout_workers.effects import AttemptIdentity
from rollstream.rollout_workers.trajectory_assembly import (
    EpisodeTimes,
    Failures,
    WorkerFacts,
    assemble,
    failed,
)
from rollstream.schemas import ids
from rollstream.schemas.journal import AttemptFailure
from rollstream.schemas.tasks import ChatMessage, RolloutTask

TASK = RolloutTask(
    run_id="run",
    group_id=ids.group_id("run", 3),
    group_index=3,
    group_size=4,
    member_index=1,
    trajectory_id=ids.trajectory_id("run", 3, 1),
    messages=[ChatMessage(role="user", content="?")],
)


@pytest.mark.parametrize("replacement", [0, 2])
def test_a_trajectory_says_whose_place_it_takes(replacement: int) -> None:
    trajectory_id = ids.trajectory_id("run", 3, 1, replacement)
    trajectory = assemble(
        msgspec.structs.replace(TASK, replacement=replacement, trajectory_id=trajectory_id),
        WorkerFacts(worker_id="w", model="m", tokenizer_hash="h", logprobs_mode="processed_logprobs"),
        AttemptIdentity(attempt=1, birth=0),
        Failures(),
        failed(AttemptFailure(kind="data", type="invalid_task", message="!")),
        EpisodeTimes(0.0, 1.0),
        episode=None,
    )
    assert (trajectory.trajectory_id, trajectory.replacement) == (trajectory_id, replacement)
    assert (trajectory.group_id, trajectory.group_index, trajectory.member_index) == (TASK.group_id, 3, 1)
