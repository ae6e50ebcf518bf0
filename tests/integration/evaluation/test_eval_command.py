"""The command as a person types it."""

# ruff: noqa: ASYNC220  -- a test may block its own loop

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from rollstream.producers.task_log import read_task_log
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

DEADLINE_S = 60.0
OPTIONS = ["--data", "sums.jsonl", "--name", "sums", "--samples", "4", "--reward", "numeric", "--policy", "base"]
Worker = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def place(kafka: KafkaSettings, data: str) -> list[str]:
    return ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rollstream.cli.main", "eval", *arguments]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ROLLSTREAM_")}


async def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


async def test_a_report_is_written_shown_and_compared(here: Path, place: list[str], scripted_worker: Worker) -> None:
    async with scripted_worker():
        first = await call(*OPTIONS, *place, "--output", "runs/a.json", cwd=here)
        assert first.returncode == 0, first.stderr
        assert "sums · sums.jsonl · policy base" in first.stdout
        fresh = ["--repeat", "1", "--output", "runs/b.json", "--baseline", "runs/a.json"]
        second = await call(*OPTIONS, *place, *fresh, cwd=here)
    assert second.returncode == 0, second.stderr
    assert "minus base" in second.stdout
    report = json.loads((here / "runs" / "b.json").read_text())
    (evaluation,) = report["evaluations"]
    assert evaluation["settings"]["tasks"]["sampling"]["temperature"] == 1.0
    assert evaluation["policy"]["asked_for"] == "base"
    assert evaluation["data_digests"].keys() == {"sums.jsonl"}
    assert "rollstream" in report["versions"]
    difference = evaluation["baseline"]["differences"]["sums.jsonl"]["reward"]
    assert (difference["is_paired"], difference["prompts"]) == (True, 6)
    shown = await call("show", "runs/a.json", "runs/b.json", cwd=here)
    assert shown.returncode == 0, shown.stderr
    assert "runs/b.json" in shown.stdout


async def test_one_that_was_killed_goes_on_and_counts_each_episode_once(
    here: Path, place: list[str], scripted_worker: Worker, kafka: KafkaSettings, read_trajectories: Any
) -> None:
    async with scripted_worker(token_s=0.02, max_running=4):
        process = subprocess.Popen(command(*OPTIONS, *place), cwd=here, env=environment(), stderr=subprocess.DEVNULL)
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not await read_trajectories():
                    assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(await read_trajectories()) < 24
        again = await call(*OPTIONS, *place, "--output", "a.json", cwd=here)
    assert again.returncode == 0, again.stderr
    (evaluation,) = json.loads((here / "a.json").read_text())["evaluations"]
    assert (evaluation["episodes"]["wanted"], evaluation["episodes"]["completed"]) == (24, 24)
    assert len((await read_task_log(kafka, evaluation["run_ids"][0])).task_ids) == 24
    assert len(await read_trajectories()) == 24


async def test_what_is_missing_is_told_by_the_exit_code_and_never_a_zero(here: Path, place: list[str]) -> None:
    done = await call(*OPTIONS, *place, "--timeout", "2", "--output", "a.json", cwd=here)
    assert done.returncode == 3, done.stderr
    assert "24 of 24 episodes are missing" in " ".join(done.stdout.split())
    (evaluation,) = json.loads((here / "a.json").read_text())["evaluations"]
    assert (evaluation["episodes"]["missing"], evaluation["environments"]) == (24, {})


async def test_a_first_interrupt_stops_it_and_says_how_to_go_on(
    here: Path, place: list[str], kafka: KafkaSettings
) -> None:
    process = subprocess.Popen(
        command(*OPTIONS, *place), cwd=here, env=environment(), stderr=subprocess.PIPE, text=True
    )
    async with asyncio.timeout(DEADLINE_S):
        while not (await read_task_log(kafka, "")).records_read:
            assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.to_thread(process.communicate, timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "run the same command to go on" in errors


async def test_a_suite_has_a_table_for_each_evaluation_and_one_over_all(
    here: Path, place: list[str], scripted_worker: Worker
) -> None:
    (here / "suite.toml").write_text(
        """
[[evaluation]]
name = "first"
data = "sums.jsonl"
tasks = { data_source = "head", limit = 3 }
[[evaluation]]
name = "rest"
data = "sums.jsonl"
samples = 1
tasks = { data_source = "tail", skip = 3 }
"""
    )
    async with scripted_worker():
        done = await call(
            *["--suite", "suite.toml", "--policy", "base", "--reward", "numeric", "--samples", "2"], *place, cwd=here
        )
    assert done.returncode == 0, done.stderr
    for title in ("first · head · policy base", "rest · tail · policy base", "overall"):
        assert title in done.stdout


async def test_an_unknown_policy_is_one_message_and_nothing_is_emitted(
    here: Path, place: list[str], kafka: KafkaSettings
) -> None:
    refused = await call(*OPTIONS[:-1], "9:9", *place, cwd=here)
    assert refused.returncode == 1
    assert refused.stderr.startswith("rollstream: policy '9:9' is unknown: none has been announced yet")
    assert (await read_task_log(kafka, "")).records_read == 0
