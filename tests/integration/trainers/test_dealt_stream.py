"""Three ranks under gloo and a real broker: what rank 0 reads, all train on; what befalls one, all learn."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.torch_data import DealtStream
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]
Ranks = Callable[..., Awaitable[list[dict[str, Any]]]]

SCRIPT = Path(__file__).with_name("dealt_ranks.py")
WORLD_SIZE, GROUPS, GROUP_SIZE, GROUPS_PER_BATCH = 3, 18, 2, 4


@pytest.fixture
async def log(kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted) -> None:
    members = [(group, member) for group in range(GROUPS) for member in range(GROUP_SIZE)]
    Random(5).shuffle(members)
    for group, member in members:
        await send([make_trajectory(group, member, tokens=2 + group % 5, worker_id=f"{group}/{member}")])
    await emitted(GROUPS, is_finished=True)


@pytest.fixture
def ranks(kafka: KafkaSettings, tmp_path: Path) -> Ranks:
    """Runs a scenario of `dealt_ranks.py`; what each rank said."""

    async def ranks(scenario: str, *, codes: tuple[int, ...] = (0, 0, 0), folder: str = "ranks", **job: Any) -> Any:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for old in place.glob("rendezvous-*"):
            old.unlink()
        job |= {"scenario": scenario, "folder": str(place), "kafka": kafka.model_dump(mode="json", exclude_none=True)}
        path = place / "job.json"
        path.write_text(json.dumps(job))
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-W", "ignore", str(SCRIPT), str(path)],
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert tuple(json.loads(done.stdout.splitlines()[-1])["codes"]) == codes, done.stderr
        alive = [rank for rank, code in enumerate(codes) if code == 0 or (place / f"rank-{rank}.json").exists()]
        return [json.loads((place / f"rank-{rank}.json").read_text()) for rank in alive]

    return ranks


def batches(said: list[dict[str, Any]]) -> list[list[str]]:
    """What the ranks together trained on, step by step."""
    steps = zip(*(rank["steps"] for rank in said), strict=True)
    return [sorted(key for share in step for key in share["trained"]) for step in steps]


@pytest.mark.usefixtures("log")
async def test_shares_make_up_the_batches_also_after_all_ranks_were_killed_and_restored(ranks: Ranks) -> None:
    undisturbed = await ranks("trains", folder="undisturbed", first_version=1)
    assert [rank["batches"] for rank in undisturbed] == [5, 5, 5]
    everything = sorted(key for batch in batches(undisturbed) for key in batch)
    assert everything == sorted(f"{group}/{member}" for group in range(GROUPS) for member in range(GROUP_SIZE))
    assert [len(batch) for batch in batches(undisturbed)] == [8, 8, 8, 8, 4]
    assert all(any(step["trained"] for step in rank["steps"]) for rank in undisturbed), "every rank has its part"
    assert [Path(rank["rolled_back_to"]).name for rank in undisturbed] == ["v4"] * 3
    assert [sorted(Path(uri).name for uri in rank["pruned"]) for rank in undisturbed] == [["v1", "v2", "v3"]] * 3
    assert undisturbed[0]["state"] == undisturbed[1]["state"] == undisturbed[2]["state"]

    killed = (-signal.SIGKILL,) * WORLD_SIZE
    before = await ranks("trains", folder="killed", codes=killed, first_version=1, dies_after=2)
    after = await ranks("trains", folder="killed", first_version=3)
    for rank in range(WORLD_SIZE):
        assert before[rank]["steps"] + after[rank]["steps"] == undisturbed[rank]["steps"]


async def test_a_time_out_of_rank_0_is_one_of_every_rank_however_short_that_of_the_group(ranks: Ranks) -> None:
    said = await ranks("waits_in_vain", options={"timeout_s": 6}, group_timeout_s=4)
    assert [rank["error"] for rank in said] == ["TimeoutError"] * 3
    assert said[0]["message"] == said[1]["message"] == said[2]["message"]
    assert [len(rank["notes"]) for rank in said] == [0, 1, 1]


@pytest.mark.usefixtures("log")
async def test_when_rank_0_fails_in_its_step_the_others_do_not_wait_for_it(ranks: Ranks) -> None:
    said = await ranks("loses_rank_0")
    assert [rank["error"] for rank in said] == ["ArithmeticError", "TransientError", "TransientError"]
    assert "one is gone" in said[1]["message"]


async def test_when_a_rank_is_killed_rank_0_learns_it_when_its_own_wait_is_over(ranks: Ranks) -> None:
    said = await ranks("loses_rank_2", codes=(0, 0, -signal.SIGKILL), options={"timeout_s": 2})
    assert [rank["error"] for rank in said] == ["TransientError", "TransientError"]


@pytest.mark.usefixtures("log")
async def test_a_rank_that_makes_another_call_is_told(ranks: Ranks) -> None:
    said = await ranks("disagrees")
    assert "rank 1 calls commit() while rank 0 is in next()" in said[1]["message"]


async def test_only_rank_0_has_the_stream(ranks: Ranks) -> None:
    said = await ranks("has_readers", readers=[0, 1])
    assert [rank["error"] for rank in said] == ["SettingsError"] * 3
    assert "ranks [0, 1] have a stream" in said[2]["message"]


def test_without_a_process_group_the_way_to_one_is_named() -> None:
    with pytest.raises(SettingsError, match="init_process_group"):
        DealtStream(None)
