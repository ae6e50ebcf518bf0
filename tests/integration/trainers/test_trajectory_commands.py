# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (aiokafka and pyarrow are annotated in part or not at all)
from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.trajectory_export import ExportSummary, export_trajectories
from rollstream.trainers.trajectory_reading import read_trajectories
from rollstream.transport.clients import start_producer
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]


def parquet_rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part in sorted(folder.glob("part-*.parquet")):
        rows += cast("list[dict[str, Any]]", pq.read_table(part).to_pylist())
    return rows


async def test_parquet_holds_every_trajectory_once_with_its_arrays(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    trajectory = make_trajectory(0, 0, version=3, lineage=7)
    await send([trajectory, make_trajectory(0, 1, is_failed=True)])
    await send([make_trajectory(0, 0, worker_id="copy")])
    producer = await start_producer(kafka, profile="durable")
    await producer.send_and_wait(kafka.topic("trajectories"), b"garbage", partition=0)
    await producer.stop()

    summary = await export_trajectories(kafka, str(tmp_path / "out"))
    assert (summary.trajectories, summary.duplicates, summary.undecodable, summary.parts) == (2, 1, 1, 1)
    row, failed = sorted(parquet_rows(tmp_path / "out"), key=lambda row: row["member_index"])
    [sample] = trajectory.samples
    for name in ("prompt_ids", "response_ids", "response_mask", "response_logprobs", "response_versions"):
        np.testing.assert_array_equal(np.array(row[name], dtype=getattr(sample, name).dtype), getattr(sample, name))
    assert row["version_spans"] == [{"start": 0, "end": 8, "version": 3, "lineage": 7}]
    assert (row["reward"], row["worker_id"], json.loads(row["sampling"])["temperature"]) == (0.0, "w", 1.0)
    assert (failed["status"], failed["error_type"], failed["sample_index"]) == ("failed", "EngineError", None)


async def test_parts_end_at_their_number_of_rows(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    await send(make_trajectory(group, member) for group in range(3) for member in range(2))
    summary = await export_trajectories(kafka, str(tmp_path / "out"), rows_per_part=4)
    assert summary.parts == 2
    assert len(parquet_rows(tmp_path / "out")) == 6


async def test_no_part_ends_within_a_trajectory(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    whole = make_trajectory(0, 0)
    await send([msgspec.structs.replace(whole, samples=whole.samples * 3)])
    assert (await export_trajectories(kafka, str(tmp_path / "out"), rows_per_part=2)).parts == 1
    [read] = read_trajectories(str(tmp_path / "out"))
    assert len(read.samples) == 3


async def test_an_export_can_go_to_a_url_and_be_of_one_run(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    await send([make_trajectory(0, 0, run_id="a"), make_trajectory(0, 0, run_id="b")])
    await export_trajectories(kafka, (tmp_path / "out").as_uri(), file_format="jsonl", run_id="b")
    [line] = (tmp_path / "out" / "part-00000.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["run_id"], row["response_ids"][:2], row["sampling"]["top_k"]) == ("b", [100, 101], -1)


async def test_a_second_export_does_not_mix_with_the_first(kafka: KafkaSettings, tmp_path: Path) -> None:
    assert (await export_trajectories(kafka, str(tmp_path / "out"))).trajectories == 0
    with pytest.raises(SettingsError, match="holds an export already"):
        await export_trajectories(kafka, str(tmp_path / "out"))


async def test_a_following_export_goes_on_until_it_is_stopped(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    stop = asyncio.Event()
    first_is_read = asyncio.Event()

    def on_progress(summary: ExportSummary) -> None:
        if summary.trajectories == 1:
            first_is_read.set()

    async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
        following = tasks.create_task(
            export_trajectories(kafka, str(tmp_path / "out"), is_following=True, stop=stop, on_progress=on_progress)
        )
        await send([make_trajectory(0, 0)])
        await first_is_read.wait()
        stop.set()
    assert following.result().trajectories == 1
    assert len(parquet_rows(tmp_path / "out")) == 1


async def test_the_commands_export_and_tail(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    await send(make_trajectory(group, member) for group in range(2) for member in range(2))
    where = ("--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix)

    exported = await rollstream_trajectories("export", str(tmp_path / "out"), *where)
    assert "4 trajectories in 1 files" in exported
    tailed = await rollstream_trajectories("tail", "--since", "1h", "--json", "-n", "4", *where)
    lines = [json.loads(line) for line in tailed.splitlines()]
    assert sorted((line["group_index"], line["member_index"]) for line in lines) == [(0, 0), (0, 1), (1, 0), (1, 1)]


async def rollstream_trajectories(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rollstream.cli.main", "trajectories", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()
