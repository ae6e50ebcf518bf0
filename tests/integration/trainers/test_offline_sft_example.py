"""`examples/offline_sft.py` on an export: what comes out holds exactly the tokens that went in."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.trajectory_export import export_trajectories
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

EXAMPLE = Path(__file__).parents[3] / "examples" / "offline_sft.py"
SHOW = """
import datasets, json, sys
made = datasets.load_from_disk(sys.argv[1])
rows = datasets.load_dataset("parquet", data_files=sys.argv[2] + "/*.parquet", split="train", cache_dir=sys.argv[3])
rows = rows.select_columns(["trajectory_id", "rewards", "metrics"])
print(json.dumps({"made": made.to_list(), "rows": rows.to_list()}))
"""


async def run(*arguments: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, *arguments], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_good_answers_become_a_dataset_of_the_same_tokens(
    kafka: KafkaSettings,
    make_trajectory: Callable[..., Trajectory],
    send: Callable[[Iterable[Trajectory]], Awaitable[None]],
    tmp_path: Path,
) -> None:
    sent = [make_trajectory(group, member, is_failed=group == 3) for group in range(4) for member in range(2)]
    await send(sent)
    await export_trajectories(kafka, str(tmp_path / "export"))

    said = await run(str(EXAMPLE), str(tmp_path / "export"), str(tmp_path / "made"), "--min-reward", "1")
    shown = json.loads(
        (await run("-c", SHOW, *(str(tmp_path / name) for name in ("made", "export", "cache")))).splitlines()[-1]
    )

    good = {t.trajectory_id: t.samples[0] for t in sent if t.reward == 1.0}
    assert said.splitlines()[-1] == f"3 samples in {tmp_path / 'made'}"
    assert {row["trajectory_id"] for row in shown["made"]} == good.keys()
    for row in shown["made"]:
        sample = good[row["trajectory_id"]]
        assert row["input_ids"] == [*sample.prompt_ids.tolist(), *sample.response_ids.tolist()]
        assert row["labels"] == [*[-100] * len(sample.prompt_ids), *sample.response_ids.tolist()]
    assert {row["trajectory_id"] for row in shown["rows"]} == {t.trajectory_id for t in sent}
