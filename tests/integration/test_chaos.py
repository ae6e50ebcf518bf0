"""`make chaos` in small: every promise is kept under a dozen faults, and without the journal the witnesses say so."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KEPT = (
    "lost",
    "untrained",
    "trained_twice",
    "trained_unequal",
    "unequal_copies",
    "broken_histories",
    "generations_repeated_unfair",
)


@dataclass(frozen=True)
class Run:
    exit_code: int | None
    printed: str
    report: dict[str, Any]
    left_behind: list[str]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Its name is short: vLLM has sockets in the folder for temporary files, and their names are limited."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name)


async def start_chaos(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    (folder / "tmp").mkdir()
    return await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "tests" / "chaos" / "run.py"), "--quick", "--plain",
        "--output", str(folder / "report" / "latest.json"), *arguments,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def run_chaos(folder: Path, *arguments: str) -> Run:
    output = folder / "report" / "latest.json"
    process = await start_chaos(folder, *arguments)
    try:
        printed = (await process.communicate())[0].decode(errors="replace")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert output.exists(), printed[-5000:]
    return Run(
        process.returncode,
        printed,
        json.loads(output.read_text()),
        await asyncio.to_thread(left_behind, folder / "tmp"),
    )


def left_behind(scratch: Path) -> list[str]:
    """Files, and processes that still work with them; one that watches over another ends a moment after it."""
    ends_at = time.monotonic() + 5.0
    while (found := _left_now(scratch)) and time.monotonic() < ends_at:
        time.sleep(0.1)
    return found


def _left_now(scratch: Path) -> list[str]:
    found = [str(path) for path in scratch.iterdir()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(scratch) in words:
                found.append(words)
    return found


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_dozen_faults_of_all_kinds_break_no_promise(folder: Path) -> None:
    run = await run_chaos(folder, "--kills", "12", "--seed", "11", "--minutes", "0.25")
    report = run.report
    assert run.exit_code == 0, run.printed[-5000:]
    assert {name: report[name] for name in KEPT} == dict.fromkeys(KEPT, 0)
    assert report["broken"] == []
    assert report["tasks"] == report["episodes"] > 50
    assert report["trained"] == report["completed"] + report["truncated"]
    assert report["generations_repeated_max"] <= 1
    assert sum(sum(kinds.values()) for kinds in report["kills"].values()) >= 12
    assert len(report["kills"]) >= 3
    assert report["processes_killed"] >= 5
    assert "every promise was kept" in run.printed
    assert run.left_behind == []


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_without_the_journal_the_witnesses_see_promises_break(folder: Path) -> None:
    run = await run_chaos(folder, "--kills", "6", "--seed", "3", "--minutes", "0.1", "--without-journal")
    report = run.report
    assert run.exit_code == 1
    assert report["generations_repeated_unfair"] > 0
    assert report["generations_repeated_max"] > 1
    assert report["lost"] == 0
    assert "BROKEN" in run.printed
    assert run.left_behind == []


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_an_interrupted_run_leaves_nothing_behind(folder: Path) -> None:
    process = await start_chaos(folder, "--kills", "50")
    assert process.stdout is not None
    async with asyncio.timeout(120):
        while b"chaos:" not in (line := await process.stdout.readline()):
            assert line, "the run ended by itself"
        assert _left_now(folder / "tmp") != []
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode not in (0, 1)
    assert await asyncio.to_thread(left_behind, folder / "tmp") == []


@pytest.mark.broker
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("tiny_model_dir")
async def test_a_real_engine_is_killed_and_no_promise_breaks(folder: Path) -> None:
    run = await run_chaos(folder, "--kills", "4", "--seed", "7", "--engine", "vllm")
    report = run.report
    assert run.exit_code == 0, run.printed[-5000:]
    assert {name: report[name] for name in KEPT} == dict.fromkeys(KEPT, 0)
    assert report["tasks"] == report["episodes"] > 20
    assert report["processes_killed"] >= 2
    assert run.left_behind == []
