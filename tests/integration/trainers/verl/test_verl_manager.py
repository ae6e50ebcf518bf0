"""verl's replay buffer and its advantages on rows that came over Kafka; the test is the rollout worker."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.control import ControlFollower
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed: the dependency group `trainers`"),
]

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]


def answered(task: RolloutTask, make: Make) -> Trajectory:
    """What a rollout worker publishes for a task: member 1 of the group `bad` fails, the one of `forked` forks."""
    uid, member = task.extra["uid"], task.member_index
    trajectory = make(task.group_index, member, tokens=4 + member, is_failed=uid == "bad" and member == 1, version=3)
    if uid == "forked" and member == 1:
        trajectory.samples.append(
            msgspec.structs.replace(trajectory.samples[0], prompt_ids=np.arange(9, dtype=np.int32))
        )
    return msgspec.structs.replace(
        trajectory,
        run_id=task.run_id,
        group_id=task.group_id,
        trajectory_id=task.trajectory_id,
        rewards={"acc": float(member)},
        extra=task.extra,
    )


async def test_verls_own_replay_buffer_samples_what_workers_have_rolled_out(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    weights = tmp_path / "global_step_3" / "actor" / "huggingface"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    tasks: list[RolloutTask] = []
    trajectories: dict[tuple[str, int], Trajectory] = {}

    async def roll_out() -> None:
        async with TrajectoryLog(kafka, topic="tasks") as log:
            await log.seek({})
            while True:
                new = [decode_record(record, RolloutTask) for record in await log.fetch(timeout_s=0.2)]
                tasks.extend(new)
                finished = {(task.extra["uid"], task.member_index): answered(task, make_trajectory) for task in new}
                trajectories.update(finished)
                await send([*finished.values(), *finished.values()])

    script = str(Path(__file__).with_name("verl_loop.py"))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, script, kafka.bootstrap, kafka.prefix, str(tmp_path)),
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdout=asyncio.subprocess.PIPE,
    )
    worker = asyncio.ensure_future(roll_out())
    try:
        async with asyncio.timeout(240):
            out, _ = await child.communicate()
    finally:
        worker.cancel()
        if child.returncode is None:
            child.kill()
            await child.wait()
        await asyncio.gather(worker, return_exceptions=True)
    assert child.returncode == 0
    report: dict[str, Any] = json.loads(out.decode().splitlines()[-1])

    assert report["refills"] == [1], "the group with a failed member is evicted, and one new prompt is dispatched"
    assert report["evicted"] == 1
    assert set(report["keys"]) == {
        *("good_0_0", "good_1_0", "forked_0_0", "forked_1_0", "forked_1_1", "refill10_0_0", "refill10_1_0")
    }
    assert set(report["left"]["train"]) == set(report["keys"]), "verl has cleared what it evicted"
    for key, row in report["rows"].items():
        uid, member, index = key.split("_")
        trajectory = trajectories[uid, int(member)]
        sample = trajectory.samples[int(index)]
        prompt, response = sample.prompt_ids.tolist(), sample.response_ids.tolist()
        assert (row["prompts"], row["responses"], row["input_ids"]) == (prompt, response, prompt + response)
        assert row["position_ids"] == list(range(len(prompt) + len(response)))
        assert row["response_mask"] == row["loss_mask"] == sample.response_mask.tolist()
        assert row["rollout_log_probs"] == sample.response_logprobs.tolist()
        assert row["rm_scores"] == [0.0] * (len(response) - 1) + [trajectory.reward]
        assert (row["uid"], row["reward_model"]["ground_truth"], row["data_source"]) == (uid, uid, "letters")
        assert row["extra_fields"]["reward_extra_info"] == {"acc": float(member)}
        tag = report["tags"][key]
        assert (tag["status"], tag["global_steps"], tag["seq_len"]) == ("success", 4, len(prompt) + len(response))
        assert (tag["min_global_steps"], tag["max_global_steps"]) == (3, 3)
        advantage = pytest.approx(0.7071 if int(member) else -0.7071, abs=1e-4)
        assert report["advantages"][key] == advantage, "rows of one session share the advantage of its last"

    assert len({task.run_id for task in tasks}) == 1
    assert {task.group_index for task in tasks} == {0, 1, 2, 3}
    assert {task.reward.answer for task in tasks if task.reward is not None} == {"good", "bad", "forked", "refill10"}
    async with ControlFollower(kafka) as control:
        policy = control.latest(PolicyVersion)
    assert policy is not None
    assert (policy[0].version, Path(policy[0].uri)) == (3, weights)
