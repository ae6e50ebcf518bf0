"""P2 on the real thing: a trainer process, killed at every line, trains the sequence it would have trained."""
# ruff: noqa: ASYNC240  -- a test may write a small file

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rollstream.schemas.control import TrainerStart
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300)]

GROUPS, GROUP_SIZE, GROUPS_PER_BATCH = 33, 2, 3
SCRIPT = Path(__file__).with_name("killed_trainer.py")
LINES_OF_LOOP = 60
"""Start-up and more than two steps: every line is the last one at least twice."""

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]


def records(make: Make, random: Random) -> list[Trajectory]:
    """Members far apart, some records twice; ``worker_id`` tells copies apart. Two groups are not trainable."""
    members = [(group, member) for group in range(GROUPS) for member in range(GROUP_SIZE)]
    members += random.sample(members, 8)
    random.shuffle(members)
    return [
        make(group, member, worker_id=f"{group}/{member}/{place}", is_failed=group in (4, 17) and member == 1)
        for place, (group, member) in enumerate(members)
    ]


@pytest.fixture
async def log(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Callable[..., Awaitable[None]]
) -> list[Trajectory]:
    sent = records(make_trajectory, Random(7))
    for record in sent:
        await send([record])
    await emitted(GROUPS, is_finished=True)
    return sent


async def history(kafka: KafkaSettings, folder: Path, **job: Any) -> dict[str, Any]:
    folder.mkdir()
    settings: dict[str, Any] = {
        "kafka": kafka.model_dump(mode="json", exclude_none=True),
        "folder": str(folder),
        "groups_per_batch": GROUPS_PER_BATCH,
        "kills": [],
        "lines_of": "loop",
        "is_async": False,
        "seed": 0,
        "rolls_back": False,
        "max_staleness": None,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(settings | job))
    completed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(SCRIPT), str(path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_killed_at_every_line_of_its_loop_it_trains_the_same_sequence(
    kafka: KafkaSettings, log: list[Trajectory], tmp_path: Path, is_async: bool
) -> None:
    undisturbed = await history(kafka, tmp_path / "undisturbed", is_async=is_async)
    kills = list(range(1, LINES_OF_LOOP))
    disturbed = await history(kafka, tmp_path / "killed", is_async=is_async, kills=kills)
    assert disturbed["killed"] >= LINES_OF_LOOP // 2
    assert disturbed["trained"] == undisturbed["trained"]
    first: dict[tuple[int, int], str] = {}
    for record in log:
        first.setdefault((record.group_index, record.member_index), record.worker_id)
    wanted = [place for (group, _), place in first.items() if group not in (4, 17)]
    assert sorted(undisturbed["trained"]) == sorted(wanted), "the first record of each, once"


async def test_killed_at_every_line_it_holds_back_the_same_batches(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Callable[..., Awaitable[None]], tmp_path: Path
) -> None:
    """Some groups come so late that whole batches wait for them, because later they would be too old."""
    random = Random(5)
    members = [(group, member) for group in range(GROUPS) for member in range(GROUP_SIZE)]
    arrives_at = {
        place: place[0] + random.random() * 4 + 9 * (place in [(1, 0), (13, 1), (22, 1)]) for place in members
    }
    for group, member in sorted(members, key=arrives_at.__getitem__):
        await send([make_trajectory(group, member, worker_id=f"{group}/{member}", is_sampled=False)])
    await emitted(GROUPS, is_finished=True)
    job = {"max_staleness": 2}
    never_held = await history(kafka, tmp_path / "never_held")
    undisturbed = await history(kafka, tmp_path / "undisturbed", **job)
    kills = list(range(1, LINES_OF_LOOP, 2))
    disturbed = await history(kafka, tmp_path / "killed", kills=kills, **job)
    assert disturbed["trained"] == undisturbed["trained"]
    assert disturbed["batches_held"] == undisturbed["batches_held"] >= 2
    assert sorted(undisturbed["trained"]) == sorted(never_held["trained"])
    assert undisturbed["trained"] != never_held["trained"]


async def test_killed_anywhere_in_the_library_and_set_back_to_older_checkpoints_it_trains_the_same_sequence(
    kafka: KafkaSettings, log: list[Trajectory], tmp_path: Path
) -> None:
    assert log
    undisturbed = await history(kafka, tmp_path / "undisturbed")
    random = Random(11)
    kills = [random.randint(1, 9000) for _ in range(50)]
    disturbed = await history(kafka, tmp_path / "killed", kills=kills, lines_of="library", seed=3, rolls_back=True)
    assert disturbed["killed"] >= 10
    assert disturbed["rolled_back"] >= 1
    assert disturbed["trained"] == undisturbed["trained"]
    async with ControlFollower(kafka) as control:
        newest = control.latest(TrainerStart)
    assert newest is not None
    assert newest[0].parent_version is not None
