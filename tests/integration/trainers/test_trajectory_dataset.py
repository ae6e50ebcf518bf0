# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch is annotated in part only)
# ruff: noqa: ASYNC240  -- a test may write a small file
from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import TrainingBatch, TrajectoryStream
from rollstream.trainers.torch_data import TrajectoryDataset, padded_tensors
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]

SCRIPT = Path(__file__).with_name("killed_loader.py")
GROUPS, GROUP_SIZE = 24, 2


@pytest.fixture
async def log(kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted) -> None:
    members = [(group, member) for group in range(GROUPS) for member in range(GROUP_SIZE)]
    Random(3).shuffle(members)
    for group, member in members:
        await send([make_trajectory(group, member, worker_id=f"{group}/{member}")])
    await emitted(GROUPS, is_finished=True)


async def trained(kafka: KafkaSettings, folder: Path, kills: list[tuple[int, str]]) -> list[str]:
    folder.mkdir()
    job: dict[str, Any] = {
        "kafka": kafka.model_dump(mode="json", exclude_none=True),
        "folder": str(folder),
        "groups_per_batch": 3,
        "kills": kills,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-W", "ignore", str(SCRIPT), str(path)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.usefixtures("log")
async def test_a_stateful_loader_killed_before_and_after_its_checkpoints_trains_the_same_sequence(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    undisturbed = await trained(kafka, tmp_path / "undisturbed", [])
    kills = [(1, "step"), (2, "save"), (1, "save"), (3, "step"), (1, "step")]
    assert await trained(kafka, tmp_path / "killed", kills) == undisturbed
    assert sorted(undisturbed) == sorted(f"{group}/{member}" for group in range(GROUPS) for member in range(GROUP_SIZE))


@pytest.mark.usefixtures("log")
async def test_a_plain_loader_gives_what_the_transform_makes_of_each_batch(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    def train() -> None:
        weights = tmp_path / "v0"
        weights.mkdir()
        (weights / "model.safetensors").write_bytes(b"weights")
        with TrajectoryStream(kafka, groups_per_batch=8) as stream:
            dataset = TrajectoryDataset(stream, partial(padded_tensors, pad_token_id=0, advantages="grpo"))
            loader = DataLoader(dataset, batch_size=None, num_workers=0)
            dataset.publish_policy(0, weights)
            batches = list(loader)
            dataset.commit()
            assert dataset.prune_policies(tmp_path) == [], "the newest stays"
            assert Path(dataset.roll_back(0, root=tmp_path)) == weights
            assert [tuple(tensors["input_ids"].shape) for tensors in batches] == [(16, 11)] * 3
            assert all(isinstance(tensors["advantages"], torch.Tensor) for tensors in batches)
            assert dataset.stats().batches == 3
            assert list(loader) == [], "the next epoch goes on where this one ended"

    await asyncio.to_thread(train)


async def test_worker_processes_are_refused(kafka: KafkaSettings) -> None:
    def train() -> None:
        with TrajectoryStream(kafka) as stream:
            dataset: TrajectoryDataset[TrainingBatch] = TrajectoryDataset(stream)
            for context in ("fork", "spawn"):
                loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=context)
                with pytest.raises(SettingsError, match="num_workers=0"):
                    next(iter(loader))

    await asyncio.to_thread(train)
